// The CPU engine for Python; only this file and bindings_cuda.cpp know Python. Tensors come as
// addresses whose shapes, dtypes and strides fastdistil/backends/cpu.py has checked; everything
// here runs without the interpreter lock.
#include "bindings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>

#include "cpu/cpu_features.h"
#include "cpu/encoder.h"
#include "cpu/measure_peak.h"

namespace py = pybind11;

namespace {

using namespace fastdistil::cpu;
using fastdistil::address;
using fastdistil::one_of;

py::dict kernels_dict(const Kernels& kernels) {
  py::dict entry;
  entry["isa"] = kernels.isa;
  entry["precision"] = kernels.precision;
  entry["description"] = kernels.description;
  return entry;
}

py::dict detect() {
  py::list usable;
  for (const Kernels* kernels : usable_kernels()) usable.append(kernels_dict(*kernels));
  py::dict result;
  result["kernels"] = usable;
  result["unusable"] = unusable_reasons();
  result["features"] = cpu_features();
  return result;
}

const Kernels& kernels_for(const std::string& isa, const std::string& precision) {
  const Kernels* kernels = find_kernels(isa, precision);
  if (kernels != nullptr) return *kernels;
  throw std::invalid_argument("no " + precision + " kernels for instruction set '" + isa +
                              "' here");
}

using Addresses = std::map<std::string, std::uintptr_t>;

WeightSource source(const Addresses& weights) {
  return [&](const std::string& name) {
    const auto found = weights.find(name);
    if (found == weights.end()) throw std::invalid_argument("weights has no " + name);
    return address<const float>(found->second);
  };
}

std::unique_ptr<Encoder> make_encoder(const std::string& isa, const std::string& precision,
                                      const py::dict& sizes, const std::string& activation,
                                      float eps, const Addresses& weights) {
  const Kernels& kernels = kernels_for(isa, precision);
  const auto size = [&](const char* name) { return sizes[name].cast<int>(); };
  Shape shape;
  shape.hidden = size("hidden_size");
  shape.heads = size("num_heads");
  shape.intermediate = size("intermediate_size");
  shape.layers = size("num_layers");
  shape.vocabulary = size("vocab_size");
  shape.positions = size("max_positions");
  shape.segments = size("num_segments");
  shape.layer_norm_eps = eps;
  shape.activation = one_of<Activation>("activation", activation,
                                        {{"gelu", Activation::kGelu},
                                         {"gelu_tanh", Activation::kGeluTanh},
                                         {"relu", Activation::kRelu},
                                         {"silu", Activation::kSilu}});
  const py::gil_scoped_release released;
  return std::make_unique<Encoder>(kernels, shape, source(weights));
}

std::unique_ptr<Encoder> make_twin(const Encoder& encoder, const Addresses& tables) {
  return std::make_unique<Encoder>(encoder, source(tables));
}

// Seconds of each part of the forward, summed over the threads, where `parts` is asked for.
py::object run(const Encoder& encoder, std::uintptr_t input_ids, std::uintptr_t positions,
               std::uintptr_t segment_ids, std::uintptr_t cu_seqlens, int sequences, int tokens,
               std::uintptr_t out, const std::string& pooling, bool normalize, int threads,
               bool parts, std::uintptr_t rows, int row_count) {
  Batch batch;
  batch.input_ids = address<const std::int32_t>(input_ids);
  batch.positions = address<const std::int32_t>(positions);
  batch.segment_ids = address<const std::int32_t>(segment_ids);
  batch.cu_seqlens = address<const std::int32_t>(cu_seqlens);
  batch.sequences = sequences;
  batch.tokens = tokens;
  batch.out = address<float>(out);
  batch.pooling = one_of<Pooling>("pooling", pooling,
                                  {{"none", Pooling::kNone},
                                   {"mean", Pooling::kMean},
                                   {"cls", Pooling::kCls},
                                   {"max", Pooling::kMax}});
  batch.normalize = normalize;
  batch.rows = address<const std::int32_t>(rows);
  batch.row_count = row_count;
  PartSeconds seconds{};
  {
    const py::gil_scoped_release released;
    encoder.run(batch, threads, parts ? &seconds : nullptr);
  }
  if (!parts) return py::none();
  py::dict result;
  for (std::size_t i = 0; i < seconds.size(); ++i) result[kPartNames[i]] = seconds[i];
  return result;
}

// Multiply-adds a second that `threads` threads reach with nothing but those kernels' product.
double peak(const std::string& isa, const std::string& precision, int threads, double seconds) {
  const Kernels& kernels = kernels_for(isa, precision);
  const py::gil_scoped_release released;
  return measure_peak(kernels, threads, seconds);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "fastdistil's C++ engine";
  py::module_ cpu = module.def_submodule("cpu", "The CPU engine");
  cpu.def("detect", &detect,
          "Kernels this machine can run (fastest first), why not the others, features");
  cpu.def("peak", &peak, py::arg("isa"), py::arg("precision"), py::arg("threads"),
          py::arg("seconds"), "Multiply-adds a second of nothing but the kernels' own product");
  py::class_<Encoder>(cpu, "Encoder", "Packed weights of one encoder, immutable and thread-safe")
      .def(py::init(&make_encoder), py::arg("isa"), py::arg("precision"), py::arg("sizes"),
           py::arg("activation"), py::arg("eps"), py::arg("weights"))
      .def("twin", &make_twin, py::arg("tables"),
           "An encoder that shares the packed weights, but reads these embedding tables")
      .def("run", &run, py::arg("input_ids"), py::arg("positions"), py::arg("segment_ids"),
           py::arg("cu_seqlens"), py::arg("sequences"), py::arg("tokens"), py::arg("out"),
           py::arg("pooling"), py::arg("normalize"), py::arg("threads"), py::arg("parts") = false,
           py::arg("rows") = 0, py::arg("row_count") = kAllRows)
      .def_property_readonly("packed_bytes", &Encoder::packed_bytes)
      .def_property_readonly("isa", [](const Encoder& encoder) { return encoder.kernels().isa; })
      .def_property_readonly("precision",
                             [](const Encoder& encoder) { return encoder.kernels().precision; })
      .def_property_readonly("attention_precision",
                             [](const Encoder& encoder) {
                               return encoder.kernels().attention_bytes == 2 ? "bf16" : "fp32";
                             })
      .def_property_readonly("description",
                             [](const Encoder& encoder) { return encoder.kernels().description; });
#if FASTDISTIL_HAVE_CUDA
  bind_cuda(module);
#endif
}
