// NumPy's C API, imported once for all files of the extension.
#pragma once

#define PY_ARRAY_UNIQUE_SYMBOL ndtorch_numpy_api
#ifndef NDTORCH_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>
