//! CPU kernels on channels-last slices, all cores, results independent of the number of threads.
