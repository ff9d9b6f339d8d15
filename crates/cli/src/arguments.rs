//! The arguments all commands share, and the list of commands.

use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};

use crate::commands;
use crate::format::{Format, number};

/// Disposable virtual machines for running code.
#[derive(Debug, Parser)]
#[command(
    name = "microvm",
    version,
    about = "Run code in disposable virtual machines",
    after_help = concat!("\
Examples:
  microvm run python3 -c 'print(6*7)'               run a command in a new VM and delete the VM
  microvm run script.py                             run a script of this host in a new VM
  microvm run -it bash                              a terminal in a new VM
  microvm create --name dev --cpus 2 --memory 512MiB
  microvm exec dev uname -a
  microvm cp ./src dev:/root/src
  microvm fork dev --count 10 -- python3 try.py '", number!(), "'

Exit codes: `run`, `exec`, `shell` and `attach`: that of the command (124: time-out, 128+n: ended by signal n), 125 for
errors of microvm, 126 if the command cannot be executed, 127 if it does not exist.
All others: 2 wrong usage, 100 internal, 101 invalid request, 102 not found, 103 conflict, 104 unsupported,
105 exhausted, 106 unavailable, 107 time-out, 108 forbidden, 109 not authenticated."),
    max_term_width = 110
)]
pub(crate) struct Arguments {
    /// Directory of images, VMs and the server's socket [default: /var/lib/microvm as root, else
    /// $XDG_DATA_HOME/microvm]
    #[arg(long, global = true, env = "MICROVM_ROOT", value_name = "DIR", hide_env_values = true)]
    pub(crate) root: Option<Utf8PathBuf>,
    /// Format of printed data
    #[arg(long, short = 'o', global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
    /// The verb
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One variant per verb; each lives in its own file.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new VM, then delete the VM
    Run(commands::run::Run),
    /// Create a VM and start it
    Create(commands::create::Create),
    /// Run a command in a running VM, or attach to one
    Exec(commands::exec::Exec),
    /// Open a shell in a running VM
    Shell(commands::shell::Shell),
    /// Execute code in an interpreter that stays in a VM
    Code(commands::code::Code),
    /// Attach to a process of a VM
    Attach(commands::attach::Attach),
    /// Copy files and directories into and out of a VM
    Cp(commands::cp::Cp),
    /// List VMs
    #[command(visible_alias = "list")]
    Ls(commands::ls::Ls),
    /// Show everything about a VM
    Inspect(commands::inspect::Inspect),
    /// List the processes of a VM
    Ps(commands::ps::Ps),
    /// Show the health of VMs
    Health(commands::health::Health),
    /// Show the console of a VM, or the kept output of a process
    Logs(commands::logs::Logs),
    /// Show the resource use of VMs
    Stats(commands::stats::Stats),
    /// Follow changes of VMs
    Events(commands::events::Events),
    /// Wait for a state of a VM, or for the end of a process
    Wait(commands::wait::Wait),
    /// Pause running VMs; their memory stays
    Pause(commands::lifecycle::Targets),
    /// Resume paused VMs
    Resume(commands::lifecycle::Targets),
    /// Write VMs with their memory to disk and free their memory; the next request wakes them
    Hibernate(commands::lifecycle::Targets),
    /// Start stopped VMs
    Start(commands::lifecycle::Start),
    /// Shut down VMs; their disks stay
    Stop(commands::lifecycle::Stop),
    /// Stop VMs and start them again
    Restart(commands::lifecycle::Restart),
    /// Send a signal to a VM, or to one of its processes
    Kill(commands::kill::Kill),
    /// Rename a VM
    Rename(commands::rename::Rename),
    /// Change limits, labels and metadata of VMs
    Update(commands::update::Update),
    Commit(commands::commit::Commit),
    Export(commands::export::Export),
    Diff(commands::diff::Diff),
    /// Delete VMs, running ones included
    Rm(commands::rm::Rm),
    /// Change the memory of a running VM
    Resize(commands::resize::Resize),
    /// Fork a running VM into children with its memory, processes and files; the VM keeps running
    Fork(commands::fork::Fork),
    /// Manage snapshots: saved states of VMs
    #[command(subcommand)]
    Snapshot(commands::snapshot::Snapshot),
    /// Create VMs from a snapshot; they continue where it was taken
    Restore(commands::restore::Restore),
    /// Return a VM to one of its snapshots
    Rollback(commands::restore::Rollback),
    /// Manage golden snapshots: the booted states that VMs of a template are forked from
    #[command(subcommand)]
    Golden(commands::golden::Golden),
    /// Manage pools: VMs that are made ahead and handed out at once
    #[command(subcommand)]
    Pool(commands::pool::Pool),
    /// Manage volumes: disks with a file system that stay when VMs go
    #[command(subcommand)]
    Volume(commands::volume::Volume),
    /// Forward TCP ports of this host to a VM
    #[command(subcommand)]
    Port(commands::port::Port),
    /// Print a configuration for ssh, rsync, scp and editors
    SshConfig(commands::ssh::SshConfig),
    /// Connect standard input and output with an sshd in a VM
    #[command(hide = true)]
    SshProxy(commands::ssh::SshProxy),
    /// Connect standard input and output with the server
    #[command(hide = true)]
    DialStdio,
    /// Manage images: the file systems that VMs start from
    #[command(subcommand)]
    Image(commands::image::Image),
    Login(commands::login::Login),
    Logout(commands::login::Logout),
    /// Manage kernels
    #[command(subcommand)]
    Kernel(commands::kernel::Kernel),
    /// Manage templates: named recipes for VMs
    #[command(subcommand)]
    Template(commands::template::Template),
    /// Check this host and say how to repair what is missing
    Doctor(commands::doctor::Doctor),
    /// Measure this installation against the limits of this host
    Bench(crate::commands::bench::Bench),
    /// Verify every stored image and kernel
    Verify(commands::verify::Verify),
    /// Show the server, its host and what it has
    Info(commands::info::Info),
    /// Print the versions of this program and of the server
    Version(commands::info::Version),
    /// Manage the server in the background
    #[command(subcommand)]
    Server(commands::server::Server),
    /// Run the server; other commands start it when they need it
    Serve(commands::serve::Serve),
    /// Show what takes disk space, and make room
    #[command(subcommand)]
    System(commands::system::System),
    /// The verbs for VMs, spelt as a group
    #[command(subcommand, hide = true)]
    Vm(commands::spellings::Vm),
    /// Print completions for a shell
    Completions(commands::completions::Completions),
    /// Print the names that a word of a command line may be
    #[command(hide = true)]
    Complete(commands::complete::Complete),
    /// Write manual pages
    Man(commands::man::Man),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_reads_its_arguments() {
        Arguments::command().debug_assert();
        for line in [
            "microvm run -it --in a --out b -e A=1 -w / -u me --timeout 3s --keep -- sh -c x",
            "microvm create --name dev --cpus 2 --memory 512MiB --label a=b --network isolated",
            "microvm exec -i dev -- uname -a",
            "microvm exec -d dev -- sleep 1",
            "microvm exec -dit dev -- bash",
            "microvm exec dev ls -la --color",
            "microvm exec --env-file .env dev env",
            "microvm run python3 -c x --output y",
            "microvm run -q --rm -m 1g --env-file .env script.py --name x",
            "microvm fork dev -n 5 -e A={n} -w / --out o --parallel 2 -- sh -c x",
            "microvm fork dev --commands f --parallel 2",
            "microvm port forward dev 80 0:22 127.0.0.1:8080:80",
            "microvm run -p 8080:80 x",
            "microvm ssh-config dev --user me --alias x",
            "microvm ssh-proxy dev",
            "microvm dial-stdio",
            "microvm shell dev -u me",
            "microvm code dev -c 1 -e A=1 --timeout 3s --context x",
            "microvm code dev file.py",
            "microvm code dev --list",
            "microvm attach dev --detach-keys ctrl-a,d",
            "microvm events -f --vm dev --state running",
            "microvm wait dev --state running --state deleted --timeout 3s",
            "microvm wait dev 00000000000000000000",
            "microvm stats --no-stream a b",
            "microvm restart --time 3s a b",
            "microvm kill dev -s HUP",
            "microvm kill -s 15 dev 00000000000000000000",
            "microvm rename dev new",
            "microvm update dev --lifetime +2h --idle off --ephemeral --label a=b --rm-label c",
            "microvm export dev -o dev.tar",
            "microvm diff dev",
            "microvm info",
            "microvm version",
            "microvm server status",
            "microvm exec dev --attach 00000000000000000000",
            "microvm cp ./a dev:/b",
            "microvm ls -q --label a=b --state running",
            "microvm inspect dev",
            "microvm ps --all dev",
            "microvm logs dev --console --follow",
            "microvm pause dev",
            "microvm resume dev",
            "microvm hibernate dev",
            "microvm start a b",
            "microvm stop --time 3s a b",
            "microvm rm -f dev",
            "microvm resize dev --memory 256MiB",
            "microvm fork dev --count 10 --name try-{n}",
            "microvm fork dev -n 50 --timeout 3s -- python3 x --seed {n}",
            "microvm snapshot create dev --name ready --full",
            "microvm snapshot ls dev --golden",
            "microvm snapshot inspect ready",
            "microvm snapshot verify",
            "microvm snapshot rm --cascade a b",
            "microvm snapshot tree",
            "microvm snapshot stats",
            "microvm snapshot prune --keep 3 --older-than 30d",
            "microvm snapshot prune",
            "microvm snapshot export ready ./ready.microvm",
            "microvm snapshot import ./ready.microvm --name ready",
            "microvm restore ready --name copy",
            "microvm rollback dev ready",
            "microvm golden update code",
            "microvm golden ls code",
            "microvm golden rollback code",
            "microvm pool create py --template code --min 4 --max 16",
            "microvm pool ls",
            "microvm pool show py",
            "microvm pool resize py --min 8",
            "microvm pool rm py",
            "microvm volume create data --size 20GiB",
            "microvm volume ls",
            "microvm volume inspect data",
            "microvm volume rm data other",
            "microvm volume prune --force",
            "microvm create -v data:/data -v ./here:/there:ro --volume more:/more:ro",
            "microvm run --pool py -- python3 x",
            "microvm image build debian-python",
            "microvm image import ./x --name y",
            "microvm image pull localhost:5000/x --plain-http",
            "microvm image pull registry.test/x --ca-file ./authority.pem",
            "microvm image export x -o y.tar",
            "microvm image export x --file -",
            "microvm login registry.test -u me --password-stdin",
            "microvm logout registry.test",
            "microvm image inspect x",
            "microvm kernel build --distribution",
            "microvm kernel add ./k --name k --discovery command-line",
            "microvm template show linux-default",
            "microvm doctor",
            "microvm vm create --name dev",
            "microvm vm start dev",
            "microvm vm info dev",
            "microvm vm exec dev uname -a",
            "microvm vm delete dev",
            "microvm system info",
            "microvm system metrics",
            "microvm system df -v",
            "microvm system prune --all --dry-run -y",
            "microvm verify",
            "microvm serve",
            "microvm completions bash",
            "microvm man ./man1",
        ] {
            let parsed = Arguments::try_parse_from(line.split(' ').chain(
                ["--output", "json"].into_iter().filter(|_| !line.contains(" -- ") && !line.contains("run ")),
            ));
            assert!(parsed.is_ok(), "{line}: {parsed:?}");
        }
        for line in [
            "microvm",
            "microvm run",
            "microvm exec dev",
            "microvm create --cpus -1",
            "microvm create --memory 1KiB",
            "microvm rm",
            "microvm fork",
            "microvm update dev",
            "microvm run --keep --rm x",
            "microvm run --no-such-option x",
            "microvm port forward dev",
            "microvm port forward dev x:y",
            "microvm fork dev --parallel 2",
            "microvm fork dev --commands f -n 2",
            "microvm kill dev -s NOPE",
            "microvm wait dev --state nope",
            "microvm attach dev --detach-keys nope",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    /// Adds the help of a command and of all below it; by the name of its file.
    fn help(command: &mut clap::Command, path: &str, all: &mut std::collections::BTreeMap<String, String>) {
        let text = command.clone().bin_name(path.replace('-', " ")).render_long_help().to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        all.insert(format!("{path}.txt"), lines.join("\n") + "\n");
        for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
            let path = format!("{path}-{}", inner.get_name());
            help(inner, &path, all);
        }
    }

    /// `MICROVM_UPDATE_SNAPSHOTS=1` writes the files anew.
    #[test]
    fn the_help_of_every_command_is_as_committed() {
        let mut command = Arguments::command().term_width(100);
        command.build();
        let mut all = std::collections::BTreeMap::new();
        help(&mut command, "microvm", &mut all);
        assert!(all.len() > 50, "only {} commands", all.len());
        assert!(
            all["microvm-fork.txt"].contains("\n{n} being the child's number")
                && all["microvm-restore.txt"].contains("try-{n}")
        );
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
        if std::env::var_os("MICROVM_UPDATE_SNAPSHOTS").is_some() {
            // What a command was called before is not kept.
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder).unwrap();
            all.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).unwrap());
        }
        let committed: Vec<String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !all.contains_key(name))
            .collect();
        assert!(committed.is_empty(), "the help of commands that are no more: {committed:?}");
        for (name, text) in &all {
            let known = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
            assert!(*text == known, "{name} has changed (MICROVM_UPDATE_SNAPSHOTS=1 keeps that):\n{text}");
        }
    }
}
