"""fastdistil inside other people's engines. Each module needs the library that it is named for."""
