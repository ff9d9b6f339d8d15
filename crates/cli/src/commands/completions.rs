//! `microvm completions`: completions for shells.
//!
//! Commands and options are in the script that `clap_complete` makes; names of VMs, images and the like come from `microvm complete`,
//! which a few lines of ours behind it call.

use clap::Args;
use clap_complete::Shell;

use crate::error::CliError;
use crate::format::Format;
use crate::output::Output;

/// The program is looked for in `PATH`, not where the line names it: a Tab in a strange folder runs nothing of it.
const BASH: &str = r#"
_microvm_with_names() {
    local current=${COMP_WORDS[COMP_CWORD]} word
    local -a kept=()
    _microvm "$@"
    for word in "${COMPREPLY[@]}"; do
        case $word in
            '<'* | '['*) ;;
            -*) [[ $current == -* ]] && kept+=("$word") ;;
            *) kept+=("$word") ;;
        esac
    done
    [[ $current == = ]] && current=
    if [[ $current != -* ]]; then
        while IFS= read -r word; do
            [[ $word == *: ]] && compopt -o nospace 2>/dev/null
            kept+=("$word")
        done < <(command microvm complete "$((COMP_CWORD - 1))" -- "${COMP_WORDS[@]:1:COMP_CWORD-1}" "$current" 2>/dev/null)
    fi
    COMPREPLY=("${kept[@]}")
}
complete -F _microvm_with_names -o bashdefault -o default microvm
"#;

const ZSH: &str = r#"
_microvm_names() {
    local -a names
    names=("${(@f)$(command microvm complete $((_microvm_current - 2)) -- "${(@)_microvm_line[2,-1]}" 2>/dev/null)}")
    names=("${(@)names:#}")
    if (( ${#names} )); then
        compadd -Q -S '' -- "${(@M)names:#*:}"
        compadd -Q -- "${(@)names:#*:}"
    else
        _default
    fi
}

_microvm() {
    local -a _microvm_line=("${(@)words[1,CURRENT]}")
    local _microvm_current=$CURRENT
    _microvm_clap "$@"
}

if [ "$funcstack[1]" = "_microvm" ]; then
    _microvm "$@"
else
    compdef _microvm microvm
fi
"#;

const FISH: &str = r#"
function __fish_microvm_names
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    command microvm complete (math (count $words) - 1) -- $words[2..-1] $current 2>/dev/null
end
complete -c microvm -a '(__fish_microvm_names)'
"#;

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "In bash, zsh and fish also names of VMs, images, snapshots and the like, if a server runs.\n\nExample:\n  \
                  microvm completions bash > ~/.local/share/bash-completion/completions/microvm"
)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self, mut program: clap::Command) -> Result<u8, CliError> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut program, "microvm", &mut text);
        let text = String::from_utf8_lossy(&text);
        let text = match self.shell {
            Shell::Bash => format!("{text}{BASH}"),
            Shell::Zsh => zsh(&text),
            // Of an option that takes a value only what is said of it is offered.
            Shell::Fish => format!("{}{FISH}", text.replace(" -r\n", " -r -a '(__fish_microvm_names)'\n")),
            _ => text.into_owned(),
        };
        Output::new(Format::Table).bytes(text.as_bytes())?;
        Ok(0)
    }
}

/// Ours is the function that zsh calls, and where only files are known, names are looked for first.
fn zsh(text: &str) -> String {
    let end = text.find("\nif [ \"$funcstack[1]\"").unwrap_or(text.len());
    let text = text[..end]
        .replace(":_default'", ":_microvm_names'")
        .replace("\n_microvm() {", "\n_microvm_clap() {");
    format!("{text}{ZSH}")
}
