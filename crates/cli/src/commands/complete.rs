//! `microvm complete`: names for the completions of shells.
//!
//! The scripts of `microvm completions` call it with the words of the line. It says nothing where it knows nothing, starts no server,
//! and gives up after half a second: someone waits for the Tab key.

use std::any::TypeId;
use std::time::Duration;

use clap::{Arg, Args, Command};
use microvm_api::context::ContextId;
use microvm_client::{Client, ClientError, VmQuery};
use microvm_types::VmRef;

use crate::format::Format;
use crate::output::Output;
use crate::settings::Settings;
use crate::{remote, variables};

/// Longest time for an answer of the server.
const PATIENCE: Duration = Duration::from_millis(500);
/// Most names that are offered.
const MOST: usize = 1_000;

/// Print the names that a word of a command line may be, one a line
#[derive(Debug, Args)]
pub(crate) struct Complete {
    /// Index of the word, from 0
    at: usize,
    /// Words of the line without the program's
    #[arg(last = true)]
    words: Vec<String>,
}

impl Complete {
    /// Prints the names. Never fails: an error would stand in the middle of the line that is being typed.
    pub(crate) async fn run(self, mut program: Command) -> u8 {
        program.build();
        let prefix = self.words.get(self.at).map_or("", String::as_str);
        let before = &self.words[..self.at.min(self.words.len())];
        let Some(wanted) = Wanted::at(&program, before) else { return 0 };
        let Some(client) = client(before) else { return 0 };
        let names = tokio::time::timeout(PATIENCE, wanted.names(&client)).await;
        let Ok(Ok(mut names)) = names else { return 0 };
        names.retain(|name| name.starts_with(prefix) && is_plain(name));
        names.sort_unstable();
        names.dedup();
        names.truncate(MOST);
        let text: String = names.iter().flat_map(|name| [name, wanted.kind.suffix(), "\n"]).collect();
        // A reader that is gone needs none.
        let _ = Output::new(Format::Table).bytes(text.as_bytes());
        0
    }
}

/// The client of a server on this host that may run. One behind `ssh` would be asked for on each Tab, with a password perhaps.
fn client(words: &[String]) -> Option<Client> {
    if let Some(address) = variables::filled(remote::VARIABLE).ok()? {
        return address.starts_with("unix://").then(remote::client)?.ok()?;
    }
    let root = words.iter().enumerate().find_map(|(at, word)| match word.strip_prefix("--root")? {
        "" => words.get(at + 1).filter(|word| *word != "=").or_else(|| words.get(at + 2)).map(String::as_str),
        rest => rest.strip_prefix('='),
    });
    let root = match root {
        None => variables::read("MICROVM_ROOT").ok()?,
        root => root.map(str::to_owned),
    };
    let settings = Settings::new(root.map(Into::into)).ok()?;
    Some(Client::new(microvm_server::socket_path(&settings.root)))
}

/// True for a name that means the same in every shell, quoted or not.
fn is_plain(name: &str) -> bool {
    !name.starts_with('-')
        && name.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/' | b':' | b'@')
        })
}

/// Kind of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vm,
    /// A VM before a path in it.
    VmOfPath,
    Context,
    Image,
    Kernel,
    Template,
    Snapshot,
    Pool,
    Volume,
    /// A volume before a path of the guest.
    VolumeOfPath,
}

impl Kind {
    /// Text between the name and what follows in the same word.
    const fn suffix(self) -> &'static str {
        match self {
            Self::VmOfPath | Self::VolumeOfPath => ":",
            _ => "",
        }
    }

    /// The kind that an argument of a command (the words that lead to it) takes.
    fn of(path: &[&str], argument: &Arg) -> Option<Self> {
        let is = |id: TypeId| argument.get_value_parser().type_id() == id;
        if is(TypeId::of::<VmRef>()) {
            return Some(Self::Vm);
        }
        if is(TypeId::of::<ContextId>()) {
            return Some(Self::Context);
        }
        Some(match (path, argument.get_id().as_str()) {
            // These name something new.
            (["pool", "create"], "pool") | (["commit"], "image") => return None,
            (_, "image" | "images") => Self::Image,
            (_, "kernel") | (["kernel", "rm"], "name") => Self::Kernel,
            (_, "template") | (["template", "show" | "rm"], "name" | "names") => Self::Template,
            (_, "snapshot" | "snapshots") => Self::Snapshot,
            (_, "pool" | "pools") => Self::Pool,
            (["volume", "inspect" | "rm"], "name" | "names") => Self::Volume,
            (_, "volume" | "volumes") => Self::VolumeOfPath,
            (["cp"], "source" | "target") => Self::VmOfPath,
            _ => return None,
        })
    }
}

/// What a word of a line may be.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    kind: Kind,
    /// First word that stands alone after the command: the VM whose contexts are wanted.
    first: Option<String>,
}

impl Wanted {
    /// What comes after these words; `None` where no names are known.
    fn at(program: &Command, before: &[String]) -> Option<Self> {
        let (mut command, mut path) = (program, Vec::new());
        let (mut alone, mut only_alone) = (Vec::new(), false);
        let (before, goes_on) = joined(before);
        let mut words = before.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            if only_alone || word == "-" || !word.starts_with('-') {
                match command.find_subcommand(word).filter(|_| alone.is_empty() && !only_alone) {
                    Some(found) => {
                        command = found;
                        path.push(found.get_name());
                    }
                    None => alone.push(word),
                }
                continue;
            }
            only_alone = word == "--";
            let is_last = goes_on && words.peek().is_none();
            let word = if is_last { word.strip_suffix('=')? } else { word };
            if let Some(option) = option_that_waits(command, word)
                && words.next().is_none()
            {
                let kind = Kind::of(&path, option)?;
                return Some(Self { kind, first: alone.first().map(|&word| word.to_owned()) });
            }
        }
        if goes_on {
            return None;
        }
        let all: Vec<&Arg> = command.get_positionals().collect();
        let several =
            all.last().filter(|last| last.get_num_args().is_some_and(|range| range.max_values() > 1));
        let argument = all.get(alone.len()).or(several)?;
        let kind = Kind::of(&path, argument)?;
        Some(Self { kind, first: alone.first().map(|&word| word.to_owned()) })
    }

    async fn names(&self, client: &Client) -> Result<Vec<String>, ClientError> {
        Ok(match self.kind {
            Kind::Vm | Kind::VmOfPath => {
                let list = client.list_vms(&VmQuery::default()).await?;
                list.vms.into_iter().map(|vm| vm.name.to_string()).collect()
            }
            Kind::Context => {
                let Some(Ok(vm)) = self.first.as_ref().map(|vm| vm.parse()) else { return Ok(Vec::new()) };
                let list = client.contexts(&vm).await?;
                list.contexts.into_iter().map(|context| context.id.to_string()).collect()
            }
            Kind::Image => client.images().await?.images.into_iter().flat_map(|image| image.names).collect(),
            Kind::Kernel => client.kernels().await?.kernels.into_iter().map(|kernel| kernel.name).collect(),
            Kind::Template => client
                .templates()
                .await?
                .templates
                .into_iter()
                .map(|template| template.name.to_string())
                .collect(),
            Kind::Snapshot => {
                let list = client.list_snapshots(None, false).await?;
                list.snapshots.into_iter().map(|snapshot| snapshot.name.to_string()).collect()
            }
            Kind::Pool => {
                client.list_pools().await?.pools.into_iter().map(|pool| pool.name.to_string()).collect()
            }
            Kind::Volume | Kind::VolumeOfPath => {
                client.volumes().await?.volumes.into_iter().map(|volume| volume.name.to_string()).collect()
            }
        })
    }
}

/// Words as they were typed: bash splits them around `=` and `:`. True if the last goes on behind such a sign.
fn joined(words: &[String]) -> (Vec<String>, bool) {
    let (mut all, mut goes_on) = (Vec::<String>::new(), false);
    for word in words {
        let is_sign = matches!(word.as_str(), "=" | ":");
        match all.last_mut().filter(|_| is_sign || goes_on) {
            Some(last) => last.push_str(word),
            None => all.push(word.clone()),
        }
        goes_on = is_sign;
    }
    (all, goes_on)
}

/// The option whose value is the word after `word`, if it waits for one.
fn option_that_waits<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let takes = |option: &&Arg| {
        let least = option.get_num_args().map_or(1, |range| range.min_values());
        option.get_action().takes_values() && least > 0
    };
    if let Some(name) = word.strip_prefix("--") {
        let named = |option: &&Arg| {
            option.get_long() == Some(name)
                || option.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
        };
        return command.get_arguments().find(named).filter(takes);
    }
    let mut letters = word.strip_prefix('-')?.chars();
    while let Some(letter) = letters.next() {
        let option = command.get_arguments().find(|option| option.get_short() == Some(letter))?;
        if takes(&option) {
            // Letters that follow are its value.
            return letters.as_str().is_empty().then_some(option);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn wanted(line: &str) -> Option<(Kind, Option<String>)> {
        let mut program = crate::arguments::Arguments::command();
        program.build();
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Wanted::at(&program, &words).map(|wanted| (wanted.kind, wanted.first))
    }

    #[test]
    fn each_place_of_a_line_has_its_kind() {
        for (line, kind) in [
            ("exec", Kind::Vm),
            ("rm", Kind::Vm),
            ("rm one two", Kind::Vm),
            ("exec -e A = b", Kind::Vm),
            ("create -p 8080 : 80 --image", Kind::Image),
            ("-o json --root /x exec -i -e A=b -w /", Kind::Vm),
            ("vm exec", Kind::Vm),
            ("exec --", Kind::Vm),
            ("code dev --context", Kind::Context),
            ("run --image", Kind::Image),
            ("run --image =", Kind::Image),
            ("run --pool", Kind::Pool),
            ("run -v", Kind::VolumeOfPath),
            ("create --template", Kind::Template),
            ("create --kernel", Kind::Kernel),
            ("image rm a", Kind::Image),
            ("image tag", Kind::Image),
            ("kernel rm", Kind::Kernel),
            ("template show", Kind::Template),
            ("golden update", Kind::Template),
            ("snapshot create", Kind::Vm),
            ("snapshot rm", Kind::Snapshot),
            ("snapshot verify a", Kind::Snapshot),
            ("restore", Kind::Snapshot),
            ("rollback dev", Kind::Snapshot),
            ("pool release warm", Kind::Vm),
            ("pool rm", Kind::Pool),
            ("volume rm a", Kind::Volume),
            ("cp", Kind::VmOfPath),
            ("cp ./file", Kind::VmOfPath),
            ("port forward", Kind::Vm),
            ("ssh-config", Kind::Vm),
        ] {
            assert_eq!(wanted(line).map(|(kind, _)| kind), Some(kind), "{line}");
        }
        assert_eq!(wanted("code dev --context").unwrap().1.as_deref(), Some("dev"));
        for line in [
            "",
            "run",
            "exec dev",
            "exec dev ls",
            "create --name",
            "pool create",
            "image tag a",
            "commit dev",
            "exec nope -",
        ] {
            assert_eq!(wanted(line), None, "{line}");
        }
    }

    #[test]
    fn names_that_a_shell_would_read_as_more_are_not_offered() {
        assert!(is_plain("a-b_c.d/e:f@1"));
        for odd in ["-x", "$(reboot)", "a b", "a;b", "`x`", "a\nb", "~x", "a*", "é", "a'b"] {
            assert!(!is_plain(odd), "{odd}");
        }
    }
}
