//! The plan of `apt-get --simulate`, for people.

use std::collections::BTreeSet;

/// Packages that apt would install, replace by another version, and remove.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    installed: BTreeSet<String>,
    replaced: BTreeSet<String>,
    removed: BTreeSet<String>,
    /// False if apt found no solution for some of them yet.
    whole: bool,
}

impl Plan {
    /// Reads lines such as `Inst qemu-utils [1:10.0] (1:7.2 Debian:12 [amd64])` and `Remv qemu-block-extra [1:10.0]`.
    pub(crate) fn read(text: &str) -> Self {
        let mut plan = Self { whole: true, ..Self::default() };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (verb, name) = (words.next(), words.next());
            let Some(name) = name.map(str::to_owned) else { continue };
            match verb {
                Some("Inst") if words.next().is_some_and(|word| word.starts_with('[')) => {
                    plan.replaced.insert(name)
                }
                Some("Inst") => plan.installed.insert(name),
                Some("Remv") => plan.removed.insert(name),
                _ => false,
            };
        }
        plan
    }

    /// Both steps of an installation together; `None` for one that apt has no solution for yet.
    pub(crate) fn both(first: Option<Self>, second: Option<Self>) -> Self {
        let whole = second.is_some();
        let mut plan = Self { whole, ..Self::default() };
        for mut step in [first, second].into_iter().flatten() {
            plan.installed.append(&mut step.installed);
            plan.replaced.append(&mut step.replaced);
            plan.removed.append(&mut step.removed);
        }
        plan
    }

    /// One line for each kind of change.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (verb, names) in [
            ("installs", &self.installed),
            ("replaces by another version", &self.replaced),
            ("removes", &self.removed),
        ] {
            if !names.is_empty() {
                let list = names.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
                lines.push(format!("apt {verb} ({}): {list}", names.len()));
            }
        }
        if !self.whole {
            lines.push(
                "apt cannot tell yet what the others bring along: that depends on QEMU's version".to_owned(),
            );
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIMULATED: &str = "\
Reading package lists...
Remv qemu-block-extra [1:10.0.2+ds-2]
Inst qemu-utils [1:10.0.2+ds-2] (1:7.2+dfsg-7 Debian:12.1/stable [amd64])
Inst qemu-system-x86 (1:7.2+dfsg-7 Debian:12.1/stable [amd64])
Conf qemu-utils (1:7.2+dfsg-7 Debian:12.1/stable [amd64])
";

    #[test]
    fn a_plan_tells_new_replaced_and_removed_packages_apart() {
        let plan = Plan::read(SIMULATED);
        assert_eq!(
            plan.lines(),
            [
                "apt installs (1): qemu-system-x86",
                "apt replaces by another version (1): qemu-utils",
                "apt removes (1): qemu-block-extra",
            ]
        );
    }

    #[test]
    fn a_step_without_a_solution_is_said() {
        let plan = Plan::both(Some(Plan::read(SIMULATED)), None);
        assert_eq!(plan.lines().len(), 4);
        let both = Plan::both(
            Some(Plan::read(SIMULATED)),
            Some(Plan::read("Inst gcc (12 x)\nInst qemu-system-x86 (7 x)")),
        );
        assert_eq!(both.lines()[0], "apt installs (2): gcc qemu-system-x86");
        assert!(Plan::read("").lines().is_empty());
    }
}
