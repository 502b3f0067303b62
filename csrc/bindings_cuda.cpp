// The CUDA kernels for Python. Tensors come as addresses whose shapes, dtypes and strides
// fastdistil/cuda_kernels.py has checked, streams as numbers; everything runs without the
// interpreter lock, which the emulation would hold for long.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <string>

#include "bindings.h"
#include "cuda/latency.h"
#include "cuda/operations.h"

namespace py = pybind11;

namespace {

using namespace fastdistil::cuda;
using fastdistil::address;
using fastdistil::one_of;
using Address = std::uintptr_t;
using Unlocked = py::call_guard<py::gil_scoped_release>;

DataType data_type(const std::string& dtype) {
  return one_of<DataType>(
      "dtype", dtype,
      {{"bf16", DataType::kBFloat16}, {"fp16", DataType::kFloat16}, {"fp32", DataType::kFloat32}});
}

Activation activation_of(const std::string& name) {
  return one_of<Activation>("activation", name,
                            {{"none", Activation::kNone},
                             {"gelu", Activation::kGelu},
                             {"gelu_tanh", Activation::kGeluTanh},
                             {"relu", Activation::kRelu},
                             {"silu", Activation::kSilu}});
}

Pooling pooling_of(const std::string& name) {
  return one_of<Pooling>(
      "pooling", name, {{"mean", Pooling::kMean}, {"cls", Pooling::kCls}, {"max", Pooling::kMax}});
}

LatencyWeights weights_of(const std::string& precision) {
  return one_of<LatencyWeights>("precision", precision,
                                {{"bf16", LatencyWeights::kBFloat16},
                                 {"fp16", LatencyWeights::kFloat16},
                                 {"int8", LatencyWeights::kInt8}});
}

void run_layernorm(const std::string& dtype, Address x, Address residual, Address weight,
                   Address bias, Address out, int tokens, int width, float eps, Stream stream) {
  LayerNormArguments arguments{};
  arguments.x = address<const void>(x);
  arguments.residual = address<const void>(residual);
  arguments.weight = address<const void>(weight);
  arguments.bias = address<const void>(bias);
  arguments.out = address<void>(out);
  arguments.tokens = tokens;
  arguments.width = width;
  arguments.eps = eps;
  layernorm(data_type(dtype), arguments, stream);
}

void run_embed_layernorm(const std::string& dtype, Address input_ids, Address positions,
                         Address segment_ids, Address word, Address position, Address segment,
                         Address weight, Address bias, Address out, Address errors, int tokens,
                         int width, int words, int position_rows, int segments, float eps,
                         Stream stream) {
  EmbeddingArguments arguments{};
  arguments.input_ids = address<const std::int32_t>(input_ids);
  arguments.positions = address<const std::int32_t>(positions);
  arguments.segment_ids = address<const std::int32_t>(segment_ids);
  arguments.word = address<const void>(word);
  arguments.position = address<const void>(position);
  arguments.segment = address<const void>(segment);
  arguments.weight = address<const void>(weight);
  arguments.bias = address<const void>(bias);
  arguments.out = address<void>(out);
  arguments.errors = address<std::int32_t>(errors);
  arguments.tokens = tokens;
  arguments.width = width;
  arguments.words = words;
  arguments.position_rows = position_rows;
  arguments.segments = segments;
  arguments.eps = eps;
  embed_layernorm(data_type(dtype), arguments, stream);
}

void run_bias_activation(const std::string& dtype, const std::string& activation, Address x,
                         Address bias, Address out, int tokens, int width, Stream stream) {
  ActivationArguments arguments{};
  arguments.x = address<const void>(x);
  arguments.bias = address<const void>(bias);
  arguments.out = address<void>(out);
  arguments.tokens = tokens;
  arguments.width = width;
  bias_activation(data_type(dtype), activation_of(activation), arguments, stream);
}

void run_pool(const std::string& dtype, const std::string& pooling, bool normalize, Address hidden,
              Address cu_seqlens, Address out, int sequences, int width, Stream stream) {
  PoolingArguments arguments{};
  arguments.hidden = address<const void>(hidden);
  arguments.cu_seqlens = address<const std::int32_t>(cu_seqlens);
  arguments.out = address<float>(out);
  arguments.sequences = sequences;
  arguments.width = width;
  arguments.normalize = normalize;
  pool(data_type(dtype), pooling_of(pooling), arguments, stream);
}

void run_pack(Address mask, std::int64_t row_stride, int mask_bytes, bool mask_is_float,
              Address cu_seqlens, Address positions, Address indices, int rows, int width,
              int places, Stream stream) {
  PackingArguments arguments{};
  arguments.mask = address<const void>(mask);
  arguments.row_stride = row_stride;
  arguments.mask_bytes = mask_bytes;
  arguments.mask_is_float = mask_is_float;
  arguments.cu_seqlens = address<std::int32_t>(cu_seqlens);
  arguments.positions = address<std::int32_t>(positions);
  arguments.indices = address<std::int64_t>(indices);
  arguments.rows = rows;
  arguments.width = width;
  arguments.places = places;
  pack(arguments, stream);
}

void run_short_attention(const std::string& dtype, Address qkv, Address cu_seqlens, Address out,
                         int sequences, int heads, int head_dim, int longest, float scale,
                         Stream stream) {
  AttentionArguments arguments{};
  arguments.qkv = address<const void>(qkv);
  arguments.cu_seqlens = address<const std::int32_t>(cu_seqlens);
  arguments.out = address<void>(out);
  arguments.sequences = sequences;
  arguments.heads = heads;
  arguments.head_dim = head_dim;
  arguments.longest = longest;
  arguments.scale = scale;
  short_attention(data_type(dtype), arguments, stream);
}

// One model's weights and states for the low-latency kernel; the caller keeps the memory alive.
class LatencyEncoder {
 public:
  using Addresses = std::map<std::string, Address>;

  LatencyEncoder(const std::string& precision, const std::map<std::string, int>& sizes, float eps,
                 const std::string& activation, const Addresses& memory, int blocks)
      : weights_(weights_of(precision)), hidden_(sizes.at("hidden_size")), blocks_(blocks) {
    const auto at = [&](const char* name) { return address<void>(memory.at(name)); };
    p_.layers = sizes.at("num_layers");
    p_.vocabulary = sizes.at("vocab_size");
    p_.position_rows = sizes.at("max_positions");
    p_.segments = sizes.at("num_segments");
    p_.eps = eps;
    p_.activation = activation_of(activation);
    p_.word = at("word");
    p_.position = at("position");
    p_.segment = at("segment");
    p_.norms = static_cast<const float*>(at("norms"));
    p_.panels = at("panels");
    p_.scales = static_cast<const float*>(at("scales"));
    p_.biases = static_cast<const float*>(at("biases"));
    p_.errors = static_cast<std::int32_t*>(at("errors"));
    p_.states = at("states");
    p_.saved = at("saved");
    p_.control = static_cast<LatencyControl*>(at("control"));
  }

  void run(Address input_ids, Address positions, Address segment_ids, Address cu_seqlens,
           Address num_sequences, int rows, int longest, Address hidden_out, Address pooled,
           const std::string& pooling, bool normalize, int first_step, int last_step,
           bool cooperative, bool dependent, Stream stream) const {
    LatencyParameters p = p_;
    p.input_ids = address<const std::int32_t>(input_ids);
    p.positions = address<const std::int32_t>(positions);
    p.segment_ids = address<const std::int32_t>(segment_ids);
    p.cu_seqlens = address<const std::int32_t>(cu_seqlens);
    p.num_sequences = address<const std::int32_t>(num_sequences);
    p.rows = rows;
    p.longest = longest;
    p.hidden_out = address<void>(hidden_out);
    p.pooled = address<float>(pooled);
    p.pooling = pooling_of(pooling);
    p.normalize = normalize;
    p.first_step = first_step;
    p.last_step = last_step;
    run_latency(weights_, hidden_, p, {blocks_, cooperative, dependent}, stream);
  }

 private:
  LatencyWeights weights_;
  int hidden_, blocks_;
  LatencyParameters p_{};
};

void bind_latency(py::module_& cuda) {
  cuda.attr("latency_rows") = kLatencyRows;
  cuda.attr("latency_fewest_blocks") = kLatencyMostGroups;
  cuda.def("latency_refusal", &latency_refusal, py::arg("hidden"), py::arg("heads"),
           py::arg("intermediate"), "Why the low-latency kernel is not for these sizes, or ''");
  cuda.def(
      "latency_longest",
      [](const std::string& precision, int hidden) {
        return latency_longest(weights_of(precision), hidden);
      },
      py::arg("precision"), py::arg("hidden"), "The longest sequence it takes on this device");
  cuda.def("latency_state_bytes", &latency_state_bytes, py::arg("layers"), py::arg("hidden"),
           "Bytes of one of its two sets of states");
  cuda.def("latency_control_bytes", [] { return sizeof(LatencyControl); });
  cuda.def("latency_warps", &latency_warps, py::arg("hidden"),
           "How many warps share the columns of a product");
  cuda.def("latency_steps", &latency_steps, py::arg("layers"), "Steps of a forward");
  py::class_<LatencyEncoder>(cuda, "LatencyEncoder", "A whole encoder in one launch")
      .def(py::init<const std::string&, const std::map<std::string, int>&, float,
                    const std::string&, const LatencyEncoder::Addresses&, int>(),
           py::arg("precision"), py::arg("sizes"), py::arg("eps"), py::arg("activation"),
           py::arg("memory"), py::arg("blocks"))
      .def("run", &LatencyEncoder::run, Unlocked(), py::arg("input_ids"), py::arg("positions"),
           py::arg("segment_ids"), py::arg("cu_seqlens"), py::arg("num_sequences"), py::arg("rows"),
           py::arg("longest"), py::arg("hidden_out"), py::arg("pooled"), py::arg("pooling"),
           py::arg("normalize"), py::arg("first_step"), py::arg("last_step"),
           py::arg("cooperative"), py::arg("dependent"), py::arg("stream"));
}

}  // namespace

void bind_cuda(py::module_& module) {
  py::module_ cuda = module.def_submodule("cuda", "The fused operations in CUDA C++");
  cuda.attr("emulated") = static_cast<bool>(FASTDISTIL_CUDA_EMULATED);
  cuda.def("layernorm", &run_layernorm, Unlocked(), py::arg("dtype"), py::arg("x"),
           py::arg("residual"), py::arg("weight"), py::arg("bias"), py::arg("out"),
           py::arg("tokens"), py::arg("width"), py::arg("eps"), py::arg("stream"),
           "LayerNorm of x + residual; 0 for no residual");
  cuda.def("embed_layernorm", &run_embed_layernorm, Unlocked(), py::arg("dtype"),
           py::arg("input_ids"), py::arg("positions"), py::arg("segment_ids"), py::arg("word"),
           py::arg("position"), py::arg("segment"), py::arg("weight"), py::arg("bias"),
           py::arg("out"), py::arg("errors"), py::arg("tokens"), py::arg("width"), py::arg("words"),
           py::arg("position_rows"), py::arg("segments"), py::arg("eps"), py::arg("stream"),
           "LayerNorm of the sum of the embeddings; 0 for no segment_ids or no segment table");
  cuda.def("bias_activation", &run_bias_activation, Unlocked(), py::arg("dtype"),
           py::arg("activation"), py::arg("x"), py::arg("bias"), py::arg("out"), py::arg("tokens"),
           py::arg("width"), py::arg("stream"), "activation(x + bias)");
  cuda.def("pool", &run_pool, Unlocked(), py::arg("dtype"), py::arg("pooling"),
           py::arg("normalize"), py::arg("hidden"), py::arg("cu_seqlens"), py::arg("out"),
           py::arg("sequences"), py::arg("width"), py::arg("stream"), "One vector per sequence");
  cuda.def("pack", &run_pack, Unlocked(), py::arg("mask"), py::arg("row_stride"),
           py::arg("mask_bytes"), py::arg("mask_is_float"), py::arg("cu_seqlens"),
           py::arg("positions"), py::arg("indices"), py::arg("rows"), py::arg("width"),
           py::arg("places"), py::arg("stream"), "Where the kept tokens of a padded batch are");
  cuda.def("short_attention", &run_short_attention, Unlocked(), py::arg("dtype"), py::arg("qkv"),
           py::arg("cu_seqlens"), py::arg("out"), py::arg("sequences"), py::arg("heads"),
           py::arg("head_dim"), py::arg("longest"), py::arg("scale"), py::arg("stream"),
           "Attention within each sequence, of up to 128 tokens");
  bind_latency(cuda);
}
