//! A word that a guest keeps in three places that must agree: in a process, in memory files, on its disk.

use std::process::Output;

use super::{Home, text};

/// Keeps a word; answers who asks, and takes a new word.
const KEEPER: &str = "mkfifo /dev/shm/in; know=$1; while :; do read question word < /dev/shm/in || continue; \
    if [ -n \"$word\" ]; then know=$word; fi; echo \"$know\" > /dev/shm/answer.$question; done";
const ASK: &str = "echo $1 $2 > /dev/shm/in; until [ -s /dev/shm/answer.$1 ]; do :; done; cat /dev/shm/answer.$1; \
    rm /dev/shm/answer.$1";

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
        "until [ -p /dev/shm/in ]; do :; done; {ASK}; echo $2 > /dev/shm/word; echo $2 > /root/word; sync"
    );
    home.run(&["exec", "--timeout", LIMIT, vm, "--", "sh", "-c", &script, "change", question, word])
}

/// What a guest says of itself: the word of its process, of its memory files, of its disk, and its name.
pub(crate) fn look(home: &Home, vm: &str, question: &str) -> Output {
    let script = format!("{ASK}; cat /dev/shm/word /root/word; hostname");
    home.run(&["exec", "--timeout", LIMIT, vm, "--", "sh", "-c", &script, "look", question])
}

/// Why what a guest says is wrong, if it is.
pub(crate) fn wrong(output: &Output, vm: &str, word: &str) -> Option<String> {
    let said = text(&output.stdout);
    let expected = format!("{word}\n{word}\n{word}\n{vm}\n");
    (said != expected).then(|| format!("`{said}` instead of `{expected}` ({})", text(&output.stderr)))
}
