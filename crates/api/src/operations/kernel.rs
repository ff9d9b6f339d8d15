//! Kernels.

use crate::kernel::{AddKernel, Kernel, KernelList};
use crate::operation::{Json, KernelRef, Lines, LongJson, Nothing};
use crate::progress::ProgressLine;
use crate::queries::NoQuery;

crate::rows! {
    /// List kernels
    List = KERNEL_LIST, Get "/kernels", Safe, Offered, ((), NoQuery) Nothing => Json<KernelList>;

    /// Add a kernel
    ///
    /// Lines of type `progress`, then one of type `kernel` or `failed`.
    Add = KERNEL_ADD, Post "/kernels", Never, Withheld, ((), NoQuery) LongJson<AddKernel> => Lines<ProgressLine>;

    /// Show a kernel
    Get = KERNEL_GET, Get "/kernels/{name}", Safe, Offered, (KernelRef, NoQuery) Nothing => Json<Kernel>;

    /// Remove a kernel
    Remove = KERNEL_REMOVE, Delete "/kernels/{name}", Never, Withheld, (KernelRef, NoQuery) Nothing => Nothing;
}
