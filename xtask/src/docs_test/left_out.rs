//! Blocks of the guides that are not run, and why. A block that is neither run nor listed here fails the test, and so does a line here
//! without its block.

/// A block that is not run: its file, the beginning of its first line, and the reason.
pub(super) type LeftOut = (&'static str, &'static str, &'static str);

/// All of them.
pub(super) const LEFT_OUT: [LeftOut; 13] = [
    ("README.md", "cargo xtask quickstart ", "it comes before this test, and its second line runs for hours"),
    (
        "docs/guides/images.md",
        "cat > my.yaml <<'E'",
        "it takes packages of registries; `machine_images` builds such recipes",
    ),
    ("docs/guides/images.md", "microvm image import ./rootfs ", "it needs docker and a registry"),
    (
        "docs/guides/images.md",
        "microvm image export my-image ",
        "it needs docker; `cli_exports` reads what is exported",
    ),
    ("docs/guides/images.md", "microvm login registry.example.com ", "it needs a registry"),
    (
        "docs/guides/images.md",
        "microvm image import ./disk.qcow2 ",
        "it needs a disk; `machine_image_disks` imports some",
    ),
    (
        "docs/guides/server.md",
        "MICROVM_HOST=ssh://",
        "it needs another host; `cli_remote` works through a connection of its own",
    ),
    ("docs/guides/server.md", "[Unit]", "it is a unit of systemd, not a command"),
    (
        "docs/guides/tiers.md",
        "cd examples/tiers",
        "it takes hundreds of packages of registries, and an hour without KVM",
    ),
    ("docs/guides/tiers.md", "docker save python:3.12-alpine ", "it needs docker and a registry"),
    (
        "docs/guides/tiers.md",
        "cat > systemd.image.yaml <<'E'",
        "it takes packages of registries, and half an hour without KVM",
    ),
    ("docs/guides/vms.md", "microvm port forward dev ", "it works until Ctrl-C"),
    (
        "docs/guides/vms.md",
        "microvm ssh-config dev ",
        "it asks for a terminal; `machine_ssh` uses ssh, scp, sftp and rsync",
    ),
];

/// Blocks of a text that are no examples: the number of the line that each begins in, and its first line.
fn blocks(text: &str) -> Vec<(usize, &str)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(kind) = line.trim_start().strip_prefix("```") else { continue };
        let first = lines.next().map_or("", |(_, line)| line.trim());
        if kind.trim() != "console" {
            blocks.push((number + 1, first));
        }
        // Up to its end, which an empty block has in its first line.
        if first != "```" {
            lines.by_ref().find(|(_, line)| line.trim() == "```");
        }
    }
    blocks
}

/// What is wrong with the list for a file of this text.
pub(super) fn faults(file: &str, text: &str, list: &[LeftOut]) -> Vec<String> {
    let listed: Vec<&LeftOut> = list.iter().filter(|(of, _, _)| *of == file).collect();
    let blocks = blocks(text);
    let unlisted =
        blocks.iter().filter(|(_, first)| !listed.iter().any(|(_, start, _)| first.starts_with(start)));
    let unlisted = unlisted.map(|(line, first)| {
        format!("{file}:{line}: the block `{first}` is neither run (```console) nor left out for a reason")
    });
    let gone =
        listed.iter().filter(|(_, start, _)| !blocks.iter().any(|(_, first)| first.starts_with(start)));
    let gone =
        gone.map(|(_, start, _)| format!("{file}: there is no block `{start}…` that would be left out"));
    unlisted.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "```console\n$ a\n```\n\n- x\n\n  ```sh\n  b c\n  ```\n\n```\n```\n```ini\nd\n```\n";

    #[test]
    fn blocks_are_run_or_left_out_for_a_reason() {
        assert_eq!(blocks(TEXT), [(7, "b c"), (11, "```"), (13, "d")]);
        let list = [("f", "b ", "why"), ("f", "```", "why"), ("f", "d", "why"), ("g", "x", "why")];
        assert!(faults("f", TEXT, &list).is_empty());
        let found = faults("f", TEXT, &[("f", "b ", "why"), ("f", "e", "why")]);
        let told = ["f:11: the block", "f:13: the block", "f: there is no block `e…`"];
        let fits = found.len() == 3 && found.iter().zip(told).all(|(fault, start)| fault.starts_with(start));
        assert!(fits, "{found:?}");
    }

    #[test]
    fn every_block_of_the_guides_is_run_or_left_out() {
        let mut found = Vec::new();
        for file in super::super::all().unwrap() {
            let text = std::fs::read_to_string(crate::host::repository().join(&file)).unwrap();
            found.extend(faults(file.to_str().unwrap(), &text, &LEFT_OUT));
        }
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}
