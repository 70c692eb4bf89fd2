# shellcheck shell=bash
# What scripts need of the machine. Debian packages are installed only where the tool is missing, quietly.

# shellcheck source=apt.sh
. "${BASH_SOURCE[0]%/*}/apt.sh"

# need_tools TOOL=PACKAGE…: makes sure that each tool is there.
need_tools() {
    local pair missing=()
    for pair; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "missing: install the equivalents of the Debian packages ${missing[*]}"
    [[ $(id -u) == 0 ]] || die "missing: apt-get install ${missing[*]}"
    step "installing ${missing[*]}"
    local log
    log=$(mktemp)
    # Lists that are there are good enough; where they are not, fetch them once.
    if ! install_packages "${missing[@]}" >"$log" 2>&1; then
        apt update -qq >>"$log" 2>&1 || true
        if ! install_packages "${missing[@]}" >>"$log" 2>&1; then
            cat "$log" >&2
            rm -f "$log"
            die "apt-get install ${missing[*]} failed"
        fi
    fi
    rm -f "$log"
}

install_packages() {
    apt -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "$@" </dev/null
}

# need_demo_tools: what scripts/demo is made of.
need_demo_tools() {
    need_tools ip=iproute2 ss=iproute2 nft=nftables socat=socat ping=iputils-ping unshare=util-linux nsenter=util-linux \
        setpriv=util-linux timeout=coreutils wg=wireguard-tools jq=jq
}

# need_root: namespaces, devices and rules are root's.
need_root() {
    [[ $(id -u) == 0 ]] || die "needs root: sudo $0"
}

# need_cargo: the Rust toolchain, as new as Cargo.toml asks for, and the C compiler that links and builds the cipher.
need_cargo() {
    local wanted version
    command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "${BASH_SOURCE[0]%/*}/../../Cargo.toml")
    command -v cargo >/dev/null || die "missing: cargo; install Rust $wanted or later by rustup, https://rustup.rs"
    version=$(cargo --version | cut -d ' ' -f 2)
    printf '%s\n' "$wanted" "$version" | sort -VC ||
        die "Rust is too old: $version of $(command -v cargo); install $wanted or later by rustup, https://rustup.rs, or \`rustup update\`"
    need_tools cc=gcc
}

# has_rust_target TARGET: whether there is Rust's standard library for a target; fetched by rustup where it is missing.
has_rust_target() {
    [[ -d $(rustc --print target-libdir --target "$1") ]] && return
    command -v rustup >/dev/null || return
    step "fetching Rust's standard library for $1"
    rustup target add "$1"
}

# need_go: a Go toolchain that reads today's modules (Debian 12's own is older), for other people's programs.
need_go() {
    local version
    command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
    need_tools go=golang-go
    version=$(go env GOVERSION)
    printf '%s\n' go1.22 "$version" | sort -VC || die "go is too old: $version; install Go 1.22 or later from https://go.dev/dl"
}
