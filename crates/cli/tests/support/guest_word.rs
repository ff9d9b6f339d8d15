//! A word that a guest keeps in three places that must agree: in a process, in memory files, on its disk.

use std::process::Output;

use super::{Home, text};

/// Keeps a word; answers who asks, and takes a new word. It holds both ends of the pipe open: a question that comes while
/// another one is read stays in it (one that was cut off may still be asked in the guest).
const KEEPER: &str = "mkfifo /dev/shm/in; exec 3<> /dev/shm/in; know=$1; while read question word <&3; do \
    if [ -n \"$word\" ]; then know=$word; fi; echo \"$know\" > /dev/shm/answer.$question; done";
/// In the shell alone: under emulation every program that a child starts first takes 20 ms.
const SHOW: &str = "show() { while read -r line || [ -n \"$line\" ]; do echo \"$line\"; done < $1; }";
const ASK: &str =
    "echo $1 $2 > /dev/shm/in; until [ -s /dev/shm/answer.$1 ]; do :; done; show /dev/shm/answer.$1";

/// Longest time for one look into a guest.
const LIMIT: &str = "40s";

/// Gives a new guest its word.
pub(crate) fn plant(home: &Home, vm: &str, word: &str) -> Output {
    let started = home.run(&["exec", "-d", vm, "--", "sh", "-c", KEEPER, "keeper", word]);
    if !started.status.success() {
        return started;
    }
    change(home, vm, "first", word)
}

/// Changes the word of a guest in all places. `question` is one that was never asked.
pub(crate) fn change(home: &Home, vm: &str, question: &str, word: &str) -> Output {
    let script = format!(
        "{SHOW}; until [ -p /dev/shm/in ]; do :; done; {ASK}; echo $2 > /dev/shm/word; echo $2 > /root/word; sync"
    );
    home.run(&["exec", "--timeout", LIMIT, vm, "--", "sh", "-c", &script, "change", question, word])
}

/// Identity that a guest reports: the word of its process, of its memory files, of its disk, and its name.
pub(crate) fn look(home: &Home, vm: &str, question: &str) -> Output {
    let script =
        format!("{SHOW}; {ASK}; show /dev/shm/word; show /root/word; show /proc/sys/kernel/hostname");
    home.run(&["exec", "--timeout", LIMIT, vm, "--", "sh", "-c", &script, "look", question])
}

/// Why what a guest says is wrong, if it is.
pub(crate) fn wrong(output: &Output, vm: &str, word: &str) -> Option<String> {
    let said = text(&output.stdout);
    let expected = format!("{word}\n{word}\n{word}\n{vm}\n");
    (said != expected).then(|| format!("`{said}` instead of `{expected}` ({})", text(&output.stderr)))
}
