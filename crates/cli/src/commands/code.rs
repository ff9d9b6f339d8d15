//! `microvm code`: an interpreter that stays in a VM.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use camino::Utf8PathBuf;
use clap::Args;
use microvm_api::context::{
    CodeResult, Context as Interpreter, ContextId, CreateContext, ExecuteCode, ExecutionLine,
    LONGEST_EXECUTION, Language,
};
use microvm_client::ClientError;
use microvm_client::sandbox::EndRequests as _;
use microvm_types::VmRef;
use tokio::sync::mpsc;

use crate::context::Context;
use crate::duration;
use crate::environment::Environment;
use crate::error::CliError;
use crate::interrupts::Interrupts;
use crate::output::FAULTY;
use crate::visible;

/// Execute code in an interpreter that stays in a VM
#[derive(Debug, Args)]
#[command(after_help = "\
Variables, imports and functions stay until the VM stops; forks and restored snapshots have them, too. The value of
the last expression is printed (not in bash). Without code, and with a terminal, it reads line by line; Ctrl-C
interrupts the code, Ctrl-D ends. Exit code: 1 if the code ended with an exception, or in bash with another exit status
than 0. The image needs the interpreter: python3, node or bash.

Examples:
  microvm code dev -c 'import pandas; data = pandas.read_csv(\"data.csv\")'
  microvm code dev -c 'data.describe()'
  microvm fork dev --name try && microvm code try -c 'data.drop(columns=\"x\")'
  microvm code dev analysis.py
  microvm code dev --language bash -c 'cd /srv; name=value'
  microvm code dev")]
pub(crate) struct Code {
    /// Name or id of the VM
    vm: VmRef,
    /// File of this host with the code; `-` for standard input
    #[arg(value_name = "FILE", conflicts_with = "code")]
    file: Option<Utf8PathBuf>,
    /// The code
    #[arg(short, long, value_name = "CODE")]
    code: Option<String>,
    /// python, javascript or bash [default: by the ending of FILE (.py, .js, .sh), else python]
    #[arg(short, long, value_name = "LANGUAGE")]
    language: Option<Language>,
    /// Context that it runs in [default: that of the language]
    #[arg(long, value_name = "ID", conflicts_with = "language")]
    context: Option<ContextId>,
    #[command(flatten)]
    environment: Environment,
    /// Interrupt the code after this time, 1s to 1h [default: 5m]
    #[arg(long, value_parser = limit, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// List the contexts of the VM
    #[arg(long, group = "act", conflicts_with_all = ["file", "code", "environment", "env_files"])]
    list: bool,
    /// Start another context and print its id; --env is for as long as it lives
    #[arg(long, group = "act", conflicts_with_all = ["file", "code", "context"])]
    new: bool,
    /// Start the context again, without its variables
    #[arg(long, group = "act", conflicts_with_all = ["file", "code", "environment", "env_files"])]
    restart: bool,
    /// End the context
    #[arg(long, group = "act", conflicts_with_all = ["file", "code", "environment", "env_files"])]
    end: bool,
}

/// A time that an execution may have.
fn limit(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text)?;
    if (1..=LONGEST_EXECUTION).contains(&time.as_secs()) {
        return Ok(time);
    }
    Err(format!("`{text}` is not possible: 1s to 1h are"))
}

impl Code {
    pub(crate) async fn run(self, context: &Context) -> Result<u8, CliError> {
        let client = &context.client;
        // The context of a language has the language's name.
        let id = self.context.clone().unwrap_or_else(|| self.language().into());
        if self.list {
            let list = client.contexts(&self.vm).await?;
            let row = |one: &Interpreter| vec![one.id.to_string(), one.language.to_string(), one.cwd.clone()];
            context.output.table(&list, &["ID", "LANGUAGE", "DIRECTORY"], list.contexts.iter().map(row))?;
        } else if self.new {
            let environment = self.environment.all()?;
            let env = (!environment.is_empty()).then_some(environment);
            let wish = CreateContext { language: self.language(), env, ..CreateContext::default() };
            let made = client.create_context(&self.vm, &wish).await?;
            context.output.value(&made, made.id.as_str())?;
        } else if self.restart {
            let made = client.restart_context(&self.vm, &id).await?;
            context.output.value(&made, made.id.as_str())?;
        } else if self.end {
            client.remove_context(&self.vm, &id).await?;
        } else if let Some(code) = self.given()? {
            let session = self.session(context, id)?;
            return session.whole(code).await;
        } else {
            return self.session(context, id)?.by_lines().await;
        }
        Ok(0)
    }

    /// Language of a context that is not named.
    fn language(&self) -> Language {
        let by_name = || match self.file.as_ref()?.extension()? {
            "js" => Some(Language::JavaScript),
            "sh" | "bash" => Some(Language::Bash),
            _ => None,
        };
        self.language.or_else(by_name).unwrap_or_default()
    }

    /// The code; `None`: it is typed.
    fn given(&self) -> Result<Option<String>, CliError> {
        if let Some(code) = &self.code {
            return Ok(Some(code.clone()));
        }
        let file = self.file.as_ref().filter(|file| *file != "-");
        if let Some(file) = file {
            let text = std::fs::read_to_string(file);
            return text.map(Some).map_err(|error| CliError::file("reading", file, &error));
        }
        if self.file.is_none() && std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let mut text = String::new();
        let read = std::io::stdin().lock().read_to_string(&mut text);
        read.map_err(|error| CliError::file("reading", "standard input", &error))?;
        Ok(Some(text))
    }

    fn session<'a>(&'a self, context: &'a Context, id: ContextId) -> Result<Session<'a>, CliError> {
        let environment = self.environment.all()?;
        let timeout = self.timeout.map_or(300, |timeout| timeout.as_secs());
        let language = self.context.is_none().then(|| self.language());
        Ok(Session { context, vm: &self.vm, id, language, environment, timeout })
    }
}

/// A context that is being used.
struct Session<'a> {
    context: &'a Context,
    vm: &'a VmRef,
    id: ContextId,
    /// Language, if it is that of one.
    language: Option<Language>,
    environment: BTreeMap<String, String>,
    timeout: u64,
}

/// End of an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Well,
    Exception,
    Incomplete,
}

impl Session<'_> {
    async fn whole(&self, code: String) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let mut all = Vec::new();
        let end = self.execute(&mut interrupts, code, false, &mut all).await;
        // What came before a failure is printed, too.
        if self.context.output.is_json() && (end.is_ok() || !all.is_empty()) {
            self.context.output.json(&all)?;
        }
        let end = end?;
        Ok(if end == End::Well { 0 } else { FAULTY })
    }

    async fn by_lines(&self) -> Result<u8, CliError> {
        let mut interrupts = Interrupts::new()?;
        let mut typed = lines_of_terminal();
        let mut code = String::new();
        loop {
            prompt(if code.is_empty() { ">>> " } else { "... " })?;
            let line = tokio::select! {
                line = typed.recv() => line,
                signal = interrupts.next() => {
                    if signal != 2 {
                        return Err(CliError::Interrupted(signal));
                    }
                    // As in a shell: what was typed is given up.
                    code.clear();
                    prompt("\n")?;
                    continue;
                }
            };
            let Some(line) = line else {
                prompt("\n")?;
                return Ok(0);
            };
            code.push_str(&line);
            if code.trim().is_empty() {
                code.clear();
                continue;
            }
            // Only the interpreter knows if more lines must come, so the whole is sent with every line.
            let end = self.execute(&mut interrupts, code.clone(), true, &mut Vec::new()).await?;
            if end != End::Incomplete {
                code.clear();
            }
        }
    }

    /// Executes code and prints what comes, or keeps it for JSON.
    async fn execute(
        &self,
        interrupts: &mut Interrupts,
        code: String,
        interactive: bool,
        all: &mut Vec<ExecutionLine>,
    ) -> Result<End, CliError> {
        let request = ExecuteCode {
            context: self.language.is_none().then(|| self.id.clone()),
            language: self.language,
            env: (!self.environment.is_empty()).then(|| self.environment.clone()),
            timeout: self.timeout,
            interactive,
            ..ExecuteCode::new(code)
        };
        let mut lines = self.context.client.execute_code(self.vm, &request).await?;
        let (mut end, mut begun) = (End::Well, false);
        loop {
            let line = tokio::select! {
                line = lines.next() => line?,
                signal = interrupts.next() => {
                    if signal != 2 {
                        return Err(CliError::Interrupted(signal));
                    }
                    if !begun {
                        // Other code runs in the context: this one is given up by going away.
                        return if interactive { Ok(End::Exception) } else { Err(CliError::Interrupted(signal)) };
                    }
                    self.context.client.interrupt_context(self.vm, &self.id).await?;
                    continue;
                }
            };
            match &line {
                None => return Err(ClientError::Answer("the execution has no end".to_owned()).into()),
                Some(ExecutionLine::Failed { problem }) => {
                    return Err(ClientError::Problem(Box::new(problem.clone())).into());
                }
                Some(ExecutionLine::EndOfExecution) => return Ok(end),
                Some(ExecutionLine::Error { .. }) => end = End::Exception,
                Some(ExecutionLine::NumberOfExecutions { .. }) => begun = true,
                Some(ExecutionLine::Incomplete) => end = End::Incomplete,
                Some(_) => {}
            }
            if let Some(line) = line {
                if self.context.output.is_json() && !interactive {
                    all.push(line);
                } else {
                    self.print(&line)?;
                }
            }
        }
    }

    fn print(&self, line: &ExecutionLine) -> Result<(), CliError> {
        let output = self.context.output;
        match line {
            ExecutionLine::Stdout { text, .. } => output.guest_bytes(text.as_bytes()),
            ExecutionLine::Stderr { text, .. } => tell(text),
            ExecutionLine::Error { traceback, .. } => tell(traceback),
            ExecutionLine::Result(result) => output.line(&shown(result)),
            _ => Ok(()),
        }
    }
}

/// A value in words: as text, and which other forms there are.
fn shown(result: &CodeResult) -> String {
    let CodeResult {
        is_main_result: _,
        text,
        html,
        markdown,
        svg,
        png,
        jpeg,
        pdf,
        latex,
        json,
        javascript,
        extra,
    } = result;
    let forms = [
        ("html", html.is_some()),
        ("markdown", markdown.is_some()),
        ("svg", svg.is_some()),
        ("png", png.is_some()),
        ("jpeg", jpeg.is_some()),
        ("pdf", pdf.is_some()),
        ("latex", latex.is_some()),
        ("json", json.is_some()),
        ("javascript", javascript.is_some()),
    ];
    let there = forms.iter().filter(|(_, there)| *there).map(|(name, _)| *name);
    let there: Vec<&str> = there.chain(extra.keys().map(String::as_str)).collect();
    let text = text.clone().unwrap_or_default();
    if there.is_empty() { text } else { format!("{text} [also: {}; see --output json]", there.join(", ")) }
}

/// Writes to standard error, as the code did.
fn tell(text: &str) -> Result<(), CliError> {
    let mut error = std::io::stderr().lock();
    let bytes = if error.is_terminal() { visible::bytes(text.as_bytes()) } else { text.to_owned() };
    error.write_all(bytes.as_bytes()).map_err(|error| CliError::output(&error))
}

fn prompt(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| CliError::output(&error))
}

/// Lines as they are typed. The thread waits for the terminal, which nothing else can be asked to give up, and goes with the process.
fn lines_of_terminal() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut line = String::new();
        while std::io::stdin().lock().read_line(&mut line).is_ok_and(|count| count > 0) {
            if sender.blocking_send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_the_server_would_refuse_are_refused_by_the_name_of_the_option() {
        for (text, wanted) in
            [("1s", Some(1)), ("1h", Some(3_600)), ("2h", None), ("500ms", None), ("3601", None)]
        {
            assert_eq!(limit(text).ok().map(|time| time.as_secs()), wanted, "{text}");
        }
    }
}
