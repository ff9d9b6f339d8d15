//! Disks in what QEMU answers.

use std::collections::HashSet;

use serde_json::Value;

use super::nodes;

/// Name of the node that a disk's device writes to, from the answer to `query-block`. Versions of QEMU name a device by
/// its id, by its path, or by the path of a part of it.
pub(crate) fn current_node(blocks: &Value, index: usize) -> Option<String> {
    let name = nodes::first_node(index);
    blocks.as_array()?.iter().find_map(|block| {
        let of_device = block["qdev"].as_str()?.split('/').any(|part| part == name);
        let node = block["inserted"]["node-name"].as_str()?;
        (of_device && nodes::index_of(node) == Some(index)).then(|| node.to_owned())
    })
}

/// Nodes that come after the one their disk writes to.
pub(crate) fn never_used<'a>(blocks: &Value, nodes: &HashSet<&'a str>) -> Vec<&'a str> {
    let later = |node: &&&str| {
        let current = nodes::index_of(node).and_then(|index| current_node(blocks, index));
        current.is_some_and(|current| nodes::number_of(node) > nodes::number_of(&current))
    };
    nodes.iter().filter(later).copied().collect()
}

/// Name of the node a disk writes to; `None` if nothing lies between it and the lowest one of its chain.
pub(crate) fn overlay_of_long_chain(blocks: &Value, index: usize) -> Option<String> {
    let block = blocks
        .as_array()?
        .iter()
        .find(|block| block["inserted"]["node-name"].as_str().and_then(nodes::index_of) == Some(index))?;
    let overlay = block["inserted"]["node-name"].as_str()?.to_owned();
    let mut image = &block["inserted"]["image"];
    let mut depth = 0;
    while image["backing-image"].is_object() {
        image = &image["backing-image"];
        depth += 1;
    }
    (depth > 1).then_some(overlay)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_overlay_that_was_never_switched_to_is_found() {
        let inserted = json!({ "node-name": "disk1.4" });
        let blocks = json!([{ "qdev": "disk1", "inserted": inserted }]);
        let nodes = HashSet::from(["disk1", "disk1.3", "disk1.4", "disk1.5", "disk1-lowest", "disk0", "#b7"]);
        assert_eq!(never_used(&blocks, &nodes), ["disk1.5"]);
    }

    #[test]
    fn the_current_overlay_is_found_by_its_device() {
        let blocks = json!([
            { "qdev": "/machine/peripheral/disk1/virtio-backend", "inserted": { "node-name": "disk1.4" } },
            { "qdev": "disk10", "inserted": { "node-name": "disk10" } },
            { "qdev": "/machine/peripheral/disk0" },
        ]);
        assert_eq!(current_node(&blocks, 1).as_deref(), Some("disk1.4"));
        assert_eq!(current_node(&blocks, 10).as_deref(), Some("disk10"));
        assert_eq!(current_node(&blocks, 0), None);
        assert_eq!(current_node(&json!({}), 1), None);
    }

    #[test]
    fn only_what_lies_between_is_flattened() {
        let image = |layers: usize| {
            (0..layers).fold(
                json!({ "filename": "x" }),
                |below, _| json!({ "filename": "y", "backing-image": below }),
            )
        };
        let blocks = |layers| json!([{ "inserted": { "node-name": "disk0" } }, { "inserted": { "node-name": "disk1.3", "image": image(layers) } }]);
        assert_eq!(overlay_of_long_chain(&blocks(1), 1), None);
        assert_eq!(overlay_of_long_chain(&blocks(2), 1).as_deref(), Some("disk1.3"));
        assert_eq!(overlay_of_long_chain(&blocks(5), 2), None);
    }
}
