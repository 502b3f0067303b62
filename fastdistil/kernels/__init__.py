"""The door to the GPU kernels when running from a checkout.

The kernels are the files of the folder `kernels/` in the repository root, and `fastdistil.kernels`
is their only name. A wheel lays that folder down here, in place of this file. A checkout cannot, so
this file adds the folder to the package's search path; editable installs and plain `python` in the
repository root come through here.
"""

from pathlib import Path

__path__.append(str(Path(__file__).resolve().parents[2] / "kernels"))
