//! Kernels.

use crate::kernel::{AddKernel, Kernel, KernelList};
use crate::operation::{Json, KernelRef, Lines, LongJson, Nothing};
use crate::progress::ProgressLine;
use crate::queries::NoQuery;

crate::rows! {
    /// List kernels
    List = "kernel.list", Get "/kernels", ImageRead, Safe, Offered, ((), NoQuery) Nothing => Json<KernelList>;

    /// Add a kernel
    ///
    /// Lines of type `progress`, then one of type `kernel` or `failed`.
    Add = "kernel.add", Post "/kernels", ImageWrite, Never, Withheld, ((), NoQuery) LongJson<AddKernel> => Lines<ProgressLine>;

    /// Show a kernel
    Get = "kernel.get", Get "/kernels/{name}", ImageRead, Safe, Offered, (KernelRef, NoQuery) Nothing => Json<Kernel>;

    /// Remove a kernel
    Remove = "kernel.remove", Delete "/kernels/{name}", ImageWrite, Never, Withheld, (KernelRef, NoQuery) Nothing => Nothing;
}
