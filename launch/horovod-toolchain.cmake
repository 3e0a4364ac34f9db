# Horovod 0.28.1 hard-codes C++14, but the headers of torch >= 2.1 need C++17 or newer,
# and its own build ignores CXXFLAGS (-std is stripped) and CMAKE_ARGS.  CMake >= 3.21 reads
# this file through the environment variable CMAKE_TOOLCHAIN_FILE; no source is patched.
set(CMAKE_USER_MAKE_RULES_OVERRIDE_CXX "${CMAKE_CURRENT_LIST_FILE}")
# What CMake puts on the command line where a project asks for C++14:
set(CMAKE_CXX14_STANDARD_COMPILE_OPTION "-std=c++17")
set(CMAKE_CXX14_EXTENSION_COMPILE_OPTION "-std=gnu++17")
# No debug information: faster to build, and a small wheel (Horovod turns -O2 into -O3).
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO_INIT "-O2 -DNDEBUG")
# Find libmpi and torch relative to the installed extension, not at the absolute path of the
# environment it was built in: VENV/lib/pythonX.Y/site-packages/horovod/torch/mpi_lib_v2*.so
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)
set(CMAKE_INSTALL_RPATH "$ORIGIN/../../../..;$ORIGIN/../../torch/lib")
