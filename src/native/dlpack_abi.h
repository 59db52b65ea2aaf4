// The part of DLPack's stable ABI (version 1) that the bridge needs, so that no header is vendored.
#pragma once

#include <cstdint>

namespace ndtorch::dlpack {

constexpr uint32_t kMajorVersion = 1;
constexpr int32_t kCpu = 1;
constexpr const char* kExchangeApiCapsule = "dlpack_exchange_api";
constexpr const char* kVersionedCapsule = "dltensor_versioned";
constexpr const char* kUnversionedCapsule = "dltensor";

struct Version {
  uint32_t major;
  uint32_t minor;
};

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in items
  uint64_t byte_offset;
};

struct ManagedTensor {
  Version version;
  void* manager_ctx;
  void (*deleter)(ManagedTensor* self);
  uint64_t flags;
  Tensor tensor;
};

struct ExchangeApiHeader {
  Version version;
  ExchangeApiHeader* previous;
};

// `__dlpack_c_exchange_api__` of a tensor type. On failure of `to_py_object` the managed tensor
// still belongs to the caller.
struct ExchangeApi {
  ExchangeApiHeader header;
  void* allocate;
  int (*from_py_object)(void* object, ManagedTensor** out);
  int (*to_py_object)(ManagedTensor* tensor, void** out);
  int (*view_py_object)(void* object, Tensor* out);
  void* current_work_stream;
};

static_assert(sizeof(Tensor) == 48 && sizeof(ManagedTensor) == 80, "DLPack is a 64-bit ABI here");

}  // namespace ndtorch::dlpack
