//! The host code that flashrnn's CUDA and wgpu backends share.

pub mod disk_cache;
