# shellcheck shell=bash
# What ends with a script, however that ends, by SIGKILL too: the program that it waits for, and its files.

# Cargo takes the tests' programs along when it is ended.
export "CARGO_TARGET_$(uname -m | tr '[:lower:]' '[:upper:]')_UNKNOWN_LINUX_GNU_RUNNER=setpriv --pdeathsig KILL"

# begin PROGRAM…: starts a program; where the script ends first, it is sent SIGTERM.
begin() {
    # What a shell has in the background ignores SIGINT, and a terminal's is for all.
    env --default-signal=INT,QUIT setpriv --pdeathsig TERM "$@" <&0 &
}

# bound PROGRAM…: runs a program and waits for it. A signal to the script does not wait until then.
bound() {
    begin "$@"
    wait $!
}

# make_scratch DIRECTORY: a directory in it that is gone when the script and all that it started have ended. Sets $scratch.
make_scratch() {
    local alive
    scratch=$(mktemp -d "$1/corax-XXXXXX") || return
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    exec {alive}>"$scratch/alive"
    flock "$alive"
    # The lock is held as long as anybody has the file open: who waits for it must not.
    setsid flock "$scratch/alive" rm -rf "$scratch" {alive}>&- </dev/null >/dev/null 2>&1 &
}
