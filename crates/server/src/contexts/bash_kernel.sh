# The interpreter of a context in bash: an interactive shell without a terminal, which takes these lines first and then requests.
#
# A request is a line `__microvm_load ID CODE`, which is answered `loaded`, one `__microvm_set ID NAME VALUE` for each variable of
# its environment, and three lines that begin, run the code and tell its end. The code runs at the top, not in a function, so that what it
# declares stays. An interrupt gives up the line that runs, as at a prompt, and the next line tells the end. The shell reads from a
# pipe byte by byte, so that nothing of a request is read by what it starts.
#
# Its traces (`set -x`, `set -v`) and traps (DEBUG, INT) are for the code alone: they are put away behind it, and set again before the next.
# Where an interrupt gave up code with `set -v`, the line that tells the end is shown, as it is read before it can be put away.
#
# Outputs are raw; what the shell itself says stands between two NULs, behind the number of the request.
PS1= PS2=
unset MAILCHECK TMOUT PROMPT_COMMAND HISTFILE
set +m +H +o history
set --
exec 198>&1 199>&2
__microvm_id= __microvm_code= __microvm_count=0 __microvm_late=0 __microvm_busy=0 __microvm_ready=0 __microvm_status=
__microvm_names=() __microvm_values=() __microvm_saved=() __microvm_traps= __microvm_traces=
# Prompts would stand in the output. They may be read-only, and an assignment would give up the line.
__microvm_quiet() {
    case $- in *v*) set +v; __microvm_traces=v ;; esac
    [[ -n ${PS0+x} && ${PS0@a} == *r* ]] || PS0=
    [[ -n ${PS1+x} && ${PS1@a} == *r* ]] || PS1=
    [[ -n ${PS2+x} && ${PS2@a} == *r* ]] || PS2=
    [[ -n ${PROMPT_COMMAND+x} && ${PROMPT_COMMAND@a} == *r* ]] || PROMPT_COMMAND=
}
__microvm_tell() {
    builtin printf '\0microvm-context %s {"id": %s, "type": %s}\0' "$2" "$2" "$3" >&"$1"
}
__microvm_load() {
    __microvm_id=$1 __microvm_names=() __microvm_values=() __microvm_late=0 __microvm_ready=0
    builtin printf -v __microvm_code %b "${2-}"
    __microvm_tell 198 "$1" '"loaded"'
}
__microvm_set() {
    [ "$1" = "$__microvm_id" ] || return 0
    __microvm_names+=("$2")
    builtin printf -v "__microvm_values[${#__microvm_names[@]}-1]" %b "${3-}"
}
__microvm_begin() {
    [ "$1" = "$__microvm_id" ] || return 0
    local name place told
    __microvm_quiet
    if [ "$2" = 1 ]; then
        told=$(LC_ALL=C "$BASH" --norc --noprofile -n 2>&1 <<<"$__microvm_code") || :
        case $told in
        *'unexpected end of file'* | *'unexpected EOF'* | *'delimited by end-of-file'*) told=incomplete ;;
        esac
        name=${__microvm_code%$'\n'} name=${name##*[!\\]}
        ((${#name} % 2 == 0)) || told=incomplete
        if [ "$told" = incomplete ]; then
            __microvm_id=
            __microvm_tell 198 "$1" '"incomplete"'
            __microvm_tell 199 "$1" '"end_of_execution"'
            __microvm_tell 198 "$1" '"end_of_execution"'
            return
        fi
    fi
    __microvm_busy=1 __microvm_count=$((__microvm_count + 1)) __microvm_saved=()
    __microvm_tell 199 "$1" '"number_of_executions", "execution_count": '"$__microvm_count"
    __microvm_tell 198 "$1" '"number_of_executions", "execution_count": '"$__microvm_count"
    for place in "${!__microvm_names[@]}"; do
        name=${__microvm_names[place]}
        told=$(declare -p "$name" 2>/dev/null) || :
        case ${told#declare } in
        *r*' '"$name"*)
            __microvm_tell 198 "$1" '"error", "name": "ReadOnly", "value": "'"$name"'", "traceback": "'"$name"': a variable that bash does not let be set\n"'
            return
            ;;
        esac
        __microvm_saved[place]=$told
        export "$name=${__microvm_values[place]}"
    done
    __microvm_ready=1
    # In lines of their own: code that bash cannot read keeps what was set before it.
    case $- in *x*) set +x; __microvm_traces+=x ;; esac
    [ -z "$__microvm_traces" ] || __microvm_code="set -$__microvm_traces"$'\n'$__microvm_code
    [ -z "$__microvm_traps" ] || __microvm_code=$__microvm_traps$'\n'$__microvm_code
    __microvm_traps= __microvm_traces=
}
__microvm_end() {
    local place told
    __microvm_quiet
    [ "$1" = "$__microvm_id" ] && [ "$__microvm_busy" = 1 ] || return 0
    for place in "${!__microvm_saved[@]}"; do
        unset "${__microvm_names[place]}" || :
        told=${__microvm_saved[place]}
        case $told in 'declare -'*) eval "declare -g ${told#declare }" || : ;; esac
    done
    # Its own status, or that of a line that was given up.
    if [ "$__microvm_late" = 1 ] || { [ -z "$3" ] && [ "$2" = 130 ]; }; then
        set -- "$1" interrupted
    else
        set -- "$1" "${3:-$2}"
    fi
    __microvm_id= __microvm_busy=0 __microvm_late=0 __microvm_ready=0
    case $2 in
    0) ;;
    interrupted) __microvm_tell 198 "$1" '"error", "name": "Interrupted", "value": "", "traceback": "Interrupted\n"' ;;
    *) __microvm_tell 198 "$1" '"error", "name": "ExitStatus", "value": "'"$2"'", "traceback": "exit status '"$2"'\n"' ;;
    esac
    __microvm_tell 199 "$1" '"end_of_execution"'
    __microvm_tell 198 "$1" '"end_of_execution"'
}
trap '__microvm_late=1' INT
__microvm_tell 198 0 '"ready"'
