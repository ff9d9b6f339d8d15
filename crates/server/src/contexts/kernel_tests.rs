//! The interpreter itself, with the Python of this host.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

struct Kernel {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Kernel {
    fn start() -> Self {
        let mut command = Command::new("python3");
        command.args(["-u", "-c", super::STUB]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut kernel = Self { child, input, output: BufReader::new(output).lines() };
        kernel.send(&serde_json::to_string(super::KERNEL).unwrap());
        kernel.send("\n");
        assert_eq!(kernel.next()["type"], "ready");
        kernel
    }

    fn send(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).unwrap();
    }

    fn next(&mut self) -> Value {
        serde_json::from_str(&self.output.next().unwrap().unwrap()).unwrap()
    }

    fn load(&mut self, id: u64, code: &str) {
        self.send(&format!("\n{}\n", json!({"id": id, "code": code})));
        assert_eq!(self.next(), json!({"id": id, "type": "loaded"}));
    }

    /// Runs what was loaded; all its lines but the last.
    fn run(&mut self, id: u64) -> Vec<Value> {
        self.send(&format!("\n{}\n", json!({"id": id, "run": true})));
        let lines = std::iter::from_fn(|| Some(self.next()));
        lines.take_while(|line| line["type"] != "end_of_execution").collect()
    }

    fn interrupt(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn code_that_was_given_up_never_runs_and_cut_lines_are_skipped() {
    let mut kernel = Kernel::start();
    kernel.load(1, "x = 'of the first'");
    kernel.send("\n{\"id\": 2, \"code\": \"x = ");
    kernel.load(3, "'x' in globals()");
    kernel.send("\n{\"id\": 1, \"run\": true}\n");
    let lines = kernel.run(3);
    assert_eq!((lines.len(), &lines[1]["text"]), (2, &"False".into()), "{lines:?}");
    for bad in ["", "[1]", "5", "{}", "\u{1}", "{\"id\": 4, \"run\": true}"] {
        kernel.send(&format!("{bad}\n"));
    }
    kernel.load(5, "7");
    assert_eq!(kernel.run(5)[1]["text"], "7");
}

#[test]
fn an_interrupt_before_the_code_begins_is_not_lost_and_one_of_an_idle_context_is() {
    let mut kernel = Kernel::start();
    kernel.interrupt();
    kernel.load(1, "x = 1");
    assert_eq!(kernel.run(1).len(), 1);
    kernel.load(2, "x = 2");
    kernel.interrupt();
    let lines = kernel.run(2);
    assert_eq!((lines.len(), &lines[1]["name"]), (2, &"KeyboardInterrupt".into()), "{lines:?}");
    kernel.load(3, "x");
    assert_eq!(kernel.run(3)[1]["text"], "1");
}

#[test]
fn a_fork_in_the_last_expression_leaves_one_interpreter() {
    let mut kernel = Kernel::start();
    kernel.load(1, "import os\nparent = os.getpid()\nos.fork()");
    let lines = kernel.run(1);
    assert_eq!(lines.len(), 2, "{lines:?}");
    kernel.load(2, "os.waitpid(-1, 0)[1], os.getpid() == parent");
    assert_eq!(kernel.run(2)[1]["text"], "(0, True)");
}

#[test]
fn forms_that_are_no_json_are_left_out_and_named() {
    let mut kernel = Kernel::start();
    let class = "class Odd:\n    def __init__(self, value): self.value = value\n    \
                 def _repr_json_(self): return self.value\n    def __repr__(self): return 'odd'\n";
    kernel.load(1, class);
    kernel.run(1);
    let deep = "import functools\nOdd(functools.reduce(lambda inner, _: [inner], range(300), 1))";
    let codes = ["Odd({'a': float('nan')})", "Odd([float('inf')])", "Odd(10 ** 1000)", deep];
    for (id, code) in (2..).zip(codes) {
        kernel.load(id, code);
        let lines = kernel.run(id);
        let result = &lines[1];
        assert_eq!((&result["text"], &result["json"]), (&"odd".into(), &Value::Null), "{code}: {lines:?}");
        let left_out = result["extra"]["left_out"][0].as_str().unwrap();
        assert!(left_out.starts_with("json ("), "{left_out}");
    }
    kernel.load(9, "Odd([1, {'a': 2}])");
    assert_eq!(kernel.run(9)[1]["json"], json!([1, {"a": 2}]));
}
