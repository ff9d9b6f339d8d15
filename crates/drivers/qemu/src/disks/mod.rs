//! Disks of a machine: nodes of QEMU's block layer, the descriptors that they are opened by, and answers about them.

mod answers;
mod descriptors;
mod nodes;

pub(crate) use answers::{current_node, never_used, overlay_of_long_chain};
pub(crate) use descriptors::{is_of_a_layer, mark_of, path_of_set, set_of_layer};
pub(crate) use nodes::{
    SCRATCH, first_node, index_of, is_buffered, later_node, lowest_node, next_node, node, number_of,
    placeholder, size_of, tree, without_flush,
};
