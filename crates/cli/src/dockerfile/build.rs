//! Goes through the instructions, as a builder does, and notes the steps of the build and the settings of the image.

use std::collections::BTreeMap;

use microvm_api::image::{BuildStep, DirectoryStep, ImageConfig, RunStep};
use parse_dockerfile::{FromInstruction, Instruction};

use super::Refusal;
use super::copy::{self, Copying};
use super::read::{Reader, flags, here_document};
use super::source::Source;
use super::variables::Variables;

/// Characters of an instruction in messages.
const TITLE_MAX: usize = 60;

/// What a Dockerfile says.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) steps: Vec<BuildStep>,
    /// What it says of programs, without what the base says.
    pub(super) config: ImageConfig,
    /// For people.
    pub(super) notes: Vec<String>,
}

/// The image that a Dockerfile builds on, and the line that says so.
pub(super) fn base(text: &str, given: &BTreeMap<String, String>) -> Result<(String, usize), Refusal> {
    let mut reader = Reader::new(text)?;
    let mut variables = Variables::new(reader.escape, given);
    let from = before_from(&mut reader, &mut variables)?;
    image(&reader, &variables, &from)
}

/// Reads `ARG`s up to the first `FROM`.
fn before_from<'a>(
    reader: &mut Reader<'a>,
    variables: &mut Variables<'_>,
) -> Result<FromInstruction<'a>, Refusal> {
    while let Some(instruction) = reader.next() {
        match instruction? {
            Instruction::From(from) => return Ok(from),
            Instruction::Arg(argument) => {
                let line = reader.line(&argument.arg.span);
                let declared = variables.declare(&argument.arguments.value, &BTreeMap::new());
                declared.map_err(|why| Refusal::new(line, format!("ARG: {why}")))?;
            }
            // The parser lets nothing else through.
            _ => break,
        }
    }
    Err(Refusal::new(1, "there is no FROM"))
}

fn image(
    reader: &Reader<'_>,
    variables: &Variables<'_>,
    from: &FromInstruction<'_>,
) -> Result<(String, usize), Refusal> {
    let line = reader.line(&from.from.span);
    let wrong = |why: String| Refusal::new(line, format!("FROM: {why}"));
    for (_, value) in flags(line, "FROM", &from.options, &["platform"])? {
        let platform = variables.expand_for_from(value).map_err(wrong)?;
        let own = variables.expand_for_from("$TARGETPLATFORM").map_err(wrong)?;
        if platform != own {
            return Err(Refusal::unsupported(
                line,
                &format!("--platform={platform}"),
                &format!("VMs here are {own}"),
            ));
        }
    }
    let name = variables.expand_for_from(&from.image.value).map_err(wrong)?;
    match &*name {
        "" => Err(wrong(format!("`{}` stands for nothing: give the ARG a value", from.image.value))),
        "scratch" => Err(Refusal::unsupported(
            line,
            "FROM scratch",
            "make an image of a folder with `microvm image import`",
        )),
        _ => Ok((name, line)),
    }
}

/// Everything in a Dockerfile that is not supported, and where it cannot be read, as far as that is certain without its base.
pub(super) fn unsupported(source: &Source, given: &BTreeMap<String, String>) -> Vec<Refusal> {
    let begun = || {
        let mut reader = Reader::new(&source.text)?;
        let state = State::begin(source, &ImageConfig::default(), given, &mut reader)?;
        Ok::<_, Refusal>((reader, state))
    };
    // The lookup of the base reports it.
    let Ok((mut reader, mut state)) = begun() else { return Vec::new() };
    let mut refusals = Vec::new();
    while let Some(instruction) = reader.next() {
        match instruction.map(|instruction| state.apply(&reader, &instruction)) {
            Ok(Err(refusal)) if refusal.always => refusals.push(refusal),
            // A variable of the base may change it.
            Ok(_) => {}
            Err(unreadable) => {
                refusals.push(unreadable);
                break;
            }
        }
    }
    refusals
}

/// Goes through a Dockerfile whose base has the configuration `base`.
pub(super) fn build(
    source: &Source,
    base: &ImageConfig,
    given: &BTreeMap<String, String>,
) -> Result<Built, Refusal> {
    let mut reader = Reader::new(&source.text)?;
    let mut state = State::begin(source, base, given, &mut reader)?;
    while let Some(instruction) = reader.next() {
        state.apply(&reader, &instruction?)?;
    }
    if let Some(name) = state.variables.superfluous() {
        return Err(Refusal::new(1, format!("--build-arg {name}: no ARG has this name")));
    }
    Ok(state.built)
}

/// Where a builder is after some instructions.
struct State<'s, 'g> {
    source: &'s Source,
    variables: Variables<'g>,
    /// Arguments from before `FROM`.
    outer: BTreeMap<String, String>,
    user: String,
    directory: String,
    shell: Vec<String>,
    built: Built,
}

impl<'s, 'g> State<'s, 'g> {
    /// Behind `FROM`, on a base with the configuration `base`.
    fn begin(
        source: &'s Source,
        base: &ImageConfig,
        given: &'g BTreeMap<String, String>,
        reader: &mut Reader<'_>,
    ) -> Result<Self, Refusal> {
        let mut variables = Variables::new(reader.escape, given);
        before_from(reader, &mut variables)?;
        let outer = variables.enter(&base.environment);
        let or = |text: &String, unsaid: &str| if text.is_empty() { unsaid.to_owned() } else { text.clone() };
        Ok(Self {
            source,
            variables,
            outer,
            user: base.user.clone(),
            directory: or(&base.working_directory, "/"),
            shell: vec!["/bin/sh".to_owned(), "-c".to_owned()],
            built: Built { steps: Vec::new(), config: ImageConfig::default(), notes: Vec::new() },
        })
    }

    fn apply(&mut self, reader: &Reader<'_>, instruction: &Instruction<'_>) -> Result<(), Refusal> {
        match instruction {
            Instruction::From(from) => Err(Refusal::unsupported(
                reader.line(&from.from.span),
                "a second FROM",
                "a build has one stage; build the other one as an image of its own, and write it behind FROM",
            )),
            Instruction::Arg(argument) => {
                let line = reader.line(&argument.arg.span);
                let declared = self.variables.declare(&argument.arguments.value, &self.outer);
                declared.map_err(|why| Refusal::new(line, format!("ARG: {why}")))
            }
            Instruction::Env(env) => {
                let line = reader.line(&env.env.span);
                let pairs = self.variables.pairs(&env.arguments.value);
                let pairs = pairs.map_err(|why| Refusal::new(line, format!("ENV: {why}")))?;
                self.variables.set(&pairs);
                self.built.config.environment.extend(pairs);
                Ok(())
            }
            Instruction::Label(label) => {
                let line = reader.line(&label.label.span);
                let pairs = self.variables.pairs(&label.arguments.value);
                let pairs = pairs.map_err(|why| Refusal::new(line, format!("LABEL: {why}")))?;
                self.built.config.labels.extend(pairs);
                Ok(())
            }
            Instruction::Run(run) => {
                let line = reader.line(&run.run.span);
                flags(line, "RUN", &run.options, &[])?;
                if !run.here_docs.is_empty() {
                    return Err(here_document(line));
                }
                let command = reader.command(line, &run.arguments, &self.shell)?;
                self.run(line, command);
                Ok(())
            }
            Instruction::Copy(copy) => self.copy(&Copying {
                line: reader.line(&copy.copy.span),
                name: "COPY",
                flags: &copy.options,
                sources: &copy.src,
                destination: &copy.dest,
            }),
            Instruction::Add(add) => self.copy(&Copying {
                line: reader.line(&add.add.span),
                name: "ADD",
                flags: &add.options,
                sources: &add.src,
                destination: &add.dest,
            }),
            Instruction::Workdir(workdir) => {
                let line = reader.line(&workdir.workdir.span);
                self.enter(line, &workdir.arguments.value)
                    .map_err(|why| Refusal::new(line, format!("WORKDIR: {why}")))
            }
            Instruction::User(user) => {
                let line = reader.line(&user.user.span);
                let wrong = |why: String| Refusal::new(line, format!("USER: {why}"));
                let user = self.variables.expand(&user.arguments.value).map_err(wrong)?;
                if user.is_empty() || user.contains(char::is_whitespace) {
                    return Err(wrong("it takes one user, or user:group".to_owned()));
                }
                self.user.clone_from(&user);
                self.built.config.user = user;
                Ok(())
            }
            Instruction::Cmd(cmd) => {
                let line = reader.line(&cmd.cmd.span);
                let words = reader.command(line, &cmd.arguments, &self.shell)?;
                if words.is_empty() {
                    return Err(Refusal::unsupported(
                        line,
                        "an empty CMD",
                        "`microvm run --entrypoint` chooses another program",
                    ));
                }
                self.built.config.command = words;
                Ok(())
            }
            Instruction::Entrypoint(entrypoint) => {
                let line = reader.line(&entrypoint.entrypoint.span);
                self.built.config.entrypoint = reader.command(line, &entrypoint.arguments, &self.shell)?;
                Ok(())
            }
            Instruction::Shell(shell) => {
                self.shell = shell.arguments.iter().map(|word| word.value.to_string()).collect();
                Ok(())
            }
            Instruction::Expose(expose) => {
                let line = reader.line(&expose.expose.span);
                let ports: Vec<&str> = expose.arguments.iter().map(|port| &*port.value).collect();
                self.built.notes.push(format!(
                    "line {line}: EXPOSE {} is a note to readers: `microvm run -p HOST:GUEST` makes a port reachable",
                    ports.join(" ")
                ));
                Ok(())
            }
            other => Err(refused(reader, other)),
        }
    }

    fn run(&mut self, line: usize, command: Vec<String>) {
        let mut environment = self.variables.of_command();
        environment.extend(self.built.config.environment.clone());
        let shown = match command.strip_prefix(&*self.shell) {
            Some([text]) => text.clone(),
            _ => command.join(" "),
        };
        self.built.steps.push(BuildStep::Run(RunStep {
            title: title(line, &format!("RUN {shown}")),
            command,
            environment,
            user: if self.user.is_empty() { "root".to_owned() } else { self.user.clone() },
            working_directory: self.directory.clone(),
        }));
    }

    fn copy(&mut self, copying: &Copying<'_, '_>) -> Result<(), Refusal> {
        let step = copy::step(copying, self.source, &self.variables, &self.directory)?;
        self.built.steps.push(BuildStep::Copy(step));
        Ok(())
    }

    fn enter(&mut self, line: usize, written: &str) -> Result<(), String> {
        let written = self.variables.expand(written)?;
        let path = join(&self.directory, &written)?;
        self.built.steps.push(BuildStep::Directory(DirectoryStep {
            title: title(line, &format!("WORKDIR {written}")),
            path: path.clone(),
            owner: self.user.clone(),
        }));
        self.directory.clone_from(&path);
        self.built.config.working_directory = path;
        Ok(())
    }
}

/// The refusal of an instruction that is known and cannot be followed.
fn refused(reader: &Reader<'_>, instruction: &Instruction<'_>) -> Refusal {
    let (span, name, instead) = match instruction {
        Instruction::Volume(volume) => {
            (&volume.volume.span, "VOLUME", "give a volume to a VM with `microvm run -v NAME:/PATH`")
        }
        Instruction::Healthcheck(check) => {
            (&check.healthcheck.span, "HEALTHCHECK", "ask from outside with `microvm exec`")
        }
        Instruction::Stopsignal(signal) => {
            (&signal.stopsignal.span, "STOPSIGNAL", "`microvm kill -s` sends any signal")
        }
        Instruction::Onbuild(onbuild) => {
            (&onbuild.onbuild.span, "ONBUILD", "write its instruction into the Dockerfiles that need it")
        }
        Instruction::Maintainer(maintainer) => {
            (&maintainer.maintainer.span, "MAINTAINER", "write LABEL maintainer=NAME")
        }
        _ => return Refusal::new(1, "an instruction is not known"),
    };
    Refusal::unsupported(reader.line(span), name, instead)
}

/// An instruction in messages.
pub(super) fn title(line: usize, instruction: &str) -> String {
    let mut shown: String = instruction.chars().take(TITLE_MAX).collect();
    if shown.len() < instruction.len() {
        shown.push('…');
    }
    format!("line {line}: {shown}")
}

/// A path made absolute by the directory a builder is in, without `.` and `..`.
pub(super) fn join(directory: &str, path: &str) -> Result<String, String> {
    if path.contains('\0') {
        return Err("a path holds a zero byte".to_owned());
    }
    let mut parts: Vec<&str> = Vec::new();
    let before = if path.starts_with('/') { "" } else { directory };
    for part in before.split('/').chain(path.split('/')).filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            // The parent of the root is the root, as everywhere.
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    Ok(format!("/{}", parts.join("/")))
}
