//! An interpreter of this host, as its context sees it.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use microvm_api::context::{CodeResult, ExecuteCode, Language};
use microvm_ports::guest::ProcessInput;

use super::answers::{Answers, Output};
use super::frames::Frame;
use super::language;

pub(super) struct Kernel {
    language: Language,
    child: Child,
    input: ChildStdin,
    outputs: Receiver<(Output, Vec<u8>)>,
}

/// What an execution came to.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct Ran {
    pub(super) stdout: String,
    pub(super) stderr: String,
    /// Values as text.
    pub(super) results: Vec<String>,
    /// Name and text of the error.
    pub(super) error: Option<(String, String)>,
    pub(super) incomplete: bool,
}

impl Ran {
    pub(super) fn error(&self) -> &str {
        self.error.as_ref().map_or("", |(name, _)| name)
    }
}

impl Kernel {
    /// `None`, and says so, where this host has no such interpreter.
    pub(super) fn start(language: Language) -> Option<Self> {
        let program = language::needed(language).0;
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("skipped: no {program} on this host");
            return None;
        }
        let [first, rest @ ..] = language::command(language) else { unreachable!() };
        let mut command = Command::new(first);
        command.args(rest).args([super::MARK, "id", language.as_str(), ".", ""]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, outputs) = channel();
        let read = |from: Output, mut stream: Box<dyn std::io::Read + Send>| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut piece = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut piece) {
                    if sender.send((from, piece[..count].to_vec())).is_err() {
                        return;
                    }
                }
            });
        };
        read(Output::Stdout, Box::new(child.stdout.take().unwrap()));
        read(Output::Stderr, Box::new(child.stderr.take().unwrap()));
        let mut kernel = Self { language, input: child.stdin.take().unwrap(), child, outputs };
        kernel.send(&language::kernel(language).unwrap());
        kernel.wait_for(0, &Frame::Ready);
        Some(kernel)
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).unwrap();
    }

    fn input(&mut self, input: ProcessInput) {
        let ProcessInput::Stdin(bytes) = input else { unreachable!() };
        self.send(&bytes);
    }

    fn wait_for(&mut self, id: u64, wanted: &Frame) {
        let mut answers = Answers::new(self.language, id);
        while !answers_of(&self.outputs, &mut answers).iter().any(|(_, frame)| frame == wanted) {}
    }

    pub(super) fn load(&mut self, id: u64, code: &str) {
        self.load_all(id, &ExecuteCode::new(code));
    }

    pub(super) fn load_all(&mut self, id: u64, request: &ExecuteCode) {
        self.input(language::load(self.language, id, request).unwrap());
        self.wait_for(id, &Frame::Loaded);
    }

    /// Sends the request to run what was loaded.
    pub(super) fn begin(&mut self, id: u64, request: &ExecuteCode) {
        self.input(language::run(self.language, id, request).unwrap());
    }

    /// Follows what runs to its end. `heard` is asked about every frame.
    pub(super) fn follow(&mut self, id: u64, mut heard: impl FnMut(&Self, &Frame)) -> Ran {
        let (mut answers, mut ran) = (Answers::new(self.language, id), Ran::default());
        loop {
            for (number, frame) in answers_of(&self.outputs, &mut answers) {
                assert_eq!(number, Some(id), "{frame:?}");
                heard(self, &frame);
                match frame {
                    Frame::Stdout { text } => ran.stdout.push_str(&text),
                    Frame::Stderr { text } => ran.stderr.push_str(&text),
                    Frame::Result(result) => ran.results.push(result.text.unwrap_or_default()),
                    Frame::Error { name, value, .. } => ran.error = Some((name, value)),
                    Frame::Incomplete => ran.incomplete = true,
                    Frame::EndOfExecution => return ran,
                    Frame::NumberOfExecutions { .. } => {}
                    odd => panic!("{odd:?}"),
                }
            }
        }
    }

    pub(super) fn run(&mut self, id: u64) -> Ran {
        self.begin(id, &ExecuteCode::new(""));
        self.follow(id, |_, _| {})
    }

    /// The value of code in all its forms.
    pub(super) fn value(&mut self, id: u64, code: &str) -> CodeResult {
        self.load(id, code);
        self.begin(id, &ExecuteCode::new(""));
        let mut found = None;
        self.follow(id, |_, frame| {
            if let Frame::Result(result) = frame {
                found = Some((**result).clone());
            }
        });
        found.unwrap()
    }

    pub(super) fn does(&mut self, id: u64, code: &str) -> Ran {
        self.load(id, code);
        self.run(id)
    }

    /// Runs code that writes `begun`, and interrupts it then.
    pub(super) fn does_until_begun(&mut self, id: u64, code: &str) -> Ran {
        self.load(id, code);
        self.begin(id, &ExecuteCode::new(""));
        self.follow(id, |kernel, frame| {
            if matches!(frame, Frame::Stdout { text } if text.contains("begun")) {
                kernel.interrupt();
            }
        })
    }

    pub(super) fn interrupt(&self) {
        let group = format!("-{}", self.child.id());
        assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
    }
}

fn answers_of(outputs: &Receiver<(Output, Vec<u8>)>, answers: &mut Answers) -> Vec<(Option<u64>, Frame)> {
    let (from, bytes) = outputs.recv_timeout(Duration::from_secs(30)).unwrap();
    answers.take(from, &bytes, |_| Ok(())).unwrap()
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.child.wait();
    }
}
