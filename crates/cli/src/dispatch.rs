//! From arguments to the command that they name.

use clap::CommandFactory as _;
use microvm_types::ErrorKind;
use tokio::runtime::{Builder, Runtime};

use crate::arguments::{Arguments, Command};
use crate::commands;
use crate::commands::lifecycle::Verb;
use crate::commands::spellings::Vm as Spelling;
use crate::commands::system::System;
use crate::context::Context;
use crate::error::CliError;
use crate::settings::Settings;

/// Threads of the server that run tasks: enough to keep two cores busy, few enough to stay small.
const SERVER_THREADS: usize = 3;

/// Runs a command; gives the exit code.
pub(crate) fn dispatch(mut arguments: Arguments) -> Result<u8, CliError> {
    arguments.command = match arguments.command {
        Command::Vm(verb) => verb.into(),
        Command::System(System::Info(command)) => Command::Info(command),
        command => command,
    };
    // Neither needs a root directory, so neither fails where none can be found.
    if let Command::Completions(command) = arguments.command {
        return command.run(Arguments::command());
    }
    if let Command::Complete(command) = arguments.command {
        let runtime = runtime(Builder::new_current_thread().enable_all())?;
        return Ok(runtime.block_on(command.run(Arguments::command())));
    }
    if let Command::Man(command) = arguments.command {
        return command.run(Arguments::command());
    }
    let beside = matches!(
        arguments.command,
        Command::Run(_) | Command::Exec(_) | Command::Shell(_) | Command::Attach(_) | Command::SshProxy(_)
    );
    let outcome = with_settings(arguments);
    if beside { outcome.map_err(CliError::beside_commands) } else { outcome }
}

fn with_settings(arguments: Arguments) -> Result<u8, CliError> {
    let settings = Settings::new(arguments.root)?;
    if let Command::Serve(command) = arguments.command {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(SERVER_THREADS).enable_all();
        return command.run(&settings, || runtime(&mut builder));
    }
    let runtime = runtime(Builder::new_current_thread().enable_all())?;
    let format = arguments.output;
    let outcome = runtime.block_on(async {
        // These come to a server by themselves or need none: `doctor` tells why there is none, `version` and `server status`
        // must not start one.
        if let Command::Doctor(command) = arguments.command {
            return command.run(settings, format).await;
        }
        if let Command::Bench(command) = arguments.command {
            return command.run(settings, format).await;
        }
        if let Command::Login(command) = arguments.command {
            return command.run(format).await;
        }
        if let Command::Logout(command) = arguments.command {
            return command.run(format).await;
        }
        if let Command::Version(command) = arguments.command {
            return command.run(&settings, format).await;
        }
        if let Command::Server(command) = arguments.command {
            return command.run(&settings, format).await;
        }
        if let Command::Info(command) = arguments.command {
            let context = Context::open(settings.clone(), format).await?;
            return command.run(&context, &settings).await;
        }
        if let Command::SshConfig(command) = arguments.command {
            let context = Context::open(settings.clone(), format).await?;
            return command.run(&context, &settings).await;
        }
        if let Command::SshProxy(command) = arguments.command {
            let context = Context::open(settings.clone(), format).await?;
            return command.run(&context, &settings).await;
        }
        let context = Context::open(settings, format).await?;
        client_command(arguments.command, &context).await
    });
    // A read from standard input that is still waiting must not hold up the end.
    runtime.shutdown_background();
    outcome
}

fn runtime(builder: &mut Builder) -> Result<Runtime, CliError> {
    let failed = |error: std::io::Error| {
        CliError::new(ErrorKind::Internal, "runtime_failed", format!("no event loop could be made: {error}"))
    };
    builder.build().map_err(failed)
}

async fn client_command(command: Command, context: &Context) -> Result<u8, CliError> {
    match command {
        Command::Run(command) => command.run(context).await,
        Command::Create(command) => command.run(context).await,
        Command::Exec(command) => command.run(context).await,
        Command::Shell(command) => command.run(context).await,
        Command::Attach(command) => command.run(context).await,
        Command::Code(command) => command.run(context).await,
        Command::Stats(command) => command.run(context).await,
        Command::Events(command) => command.run(context).await,
        Command::Wait(command) => command.run(context).await,
        Command::Restart(command) => command.run(context).await,
        Command::Kill(command) => command.run(context).await,
        Command::Rename(command) => command.run(context).await,
        Command::Update(command) => command.run(context).await,
        Command::Commit(command) => command.run(context).await,
        Command::Export(command) => command.run(context).await,
        Command::Diff(command) => command.run(context).await,
        Command::Cp(command) => command.run(context).await,
        Command::Ls(command) => command.run(context).await,
        Command::Inspect(command) => command.run(context).await,
        Command::Ps(command) => command.run(context).await,
        Command::Health(command) => command.run(context).await,
        Command::Logs(command) => command.run(context).await,
        Command::Pause(targets) => targets.run(context, Verb::Pause).await,
        Command::Resume(targets) => targets.run(context, Verb::Resume).await,
        Command::Hibernate(targets) => targets.run(context, Verb::Hibernate).await,
        Command::Start(start) => start.run(context).await,
        Command::Stop(command) => command.run(context).await,
        Command::Rm(command) => command.run(context).await,
        Command::Resize(command) => command.run(context).await,
        Command::Pool(command) => command.run(context).await,
        Command::Volume(command) => command.run(context).await,
        Command::Port(command) => command.run(context).await,
        Command::DialStdio => commands::dial_stdio::run(context).await,
        Command::Golden(command) => command.run(context).await,
        Command::Fork(command) => command.run(context).await,
        Command::Snapshot(command) => command.run(context).await,
        Command::Restore(command) => command.run(context).await,
        Command::Rollback(command) => command.run(context).await,
        Command::Image(command) => command.run(context).await,
        Command::Kernel(command) => command.run(context).await,
        Command::Template(command) => command.run(context).await,
        Command::Verify(command) => command.run(context).await,
        Command::System(command) => command.run(context).await,
        Command::Info(_)
        | Command::SshConfig(_)
        | Command::SshProxy(_)
        | Command::Version(_)
        | Command::Server(_)
        | Command::Vm(_)
        | Command::Serve(_)
        | Command::Completions(_)
        | Command::Complete(_)
        | Command::Man(_)
        | Command::Doctor(_)
        | Command::Login(_)
        | Command::Logout(_)
        | Command::Bench(_) => Ok(0),
    }
}

impl From<Spelling> for Command {
    fn from(verb: Spelling) -> Self {
        match verb {
            Spelling::Create(command) => Self::Create(*command),
            Spelling::Start(command) => Self::Start(command),
            Spelling::Stop(command) => Self::Stop(command),
            Spelling::Pause(command) => Self::Pause(command),
            Spelling::Resume(command) => Self::Resume(command),
            Spelling::Info(command) => Self::Inspect(command),
            Spelling::List(command) => Self::Ls(command),
            Spelling::Exec(command) => Self::Exec(command),
            Spelling::Delete(command) => Self::Rm(command),
        }
    }
}
