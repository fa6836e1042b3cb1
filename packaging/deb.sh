#!/usr/bin/env bash
# Builds the Debian package and, as root, installs it, uses it, and purges it again.
#
#     packaging/deb.sh [--profile release|debug]
#
# The default is release. Debug takes what `cargo build --workspace` left, so that CI needs no second build. The package is
# in target/packaging. It works without a running systemd.
set -euo pipefail
cd "$(dirname "$0")/.."

# Its install takes two minutes on 2 cores, once; unoptimized, because it has seconds of work here.
builder_version=3.8.0

profile=release
case "${1:-}" in
"") ;;
--profile)
    profile=${2:?--profile needs release or debug}
    ;;
*)
    echo "packaging/deb.sh knows no $1; it takes --profile release|debug" >&2
    exit 2
    ;;
esac

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
stage=target/packaging

fail() {
    echo "packaging/deb.sh: $*" >&2
    exit 1
}

get_builder() {
    export PATH=$target/tools/bin:$PATH
    if [ "$(cargo-deb --version 2>/dev/null)" != "cargo-deb $builder_version" ]; then
        CARGO_TARGET_DIR=$target/tools/build \
            cargo install --quiet --locked --debug --root "$target/tools" "cargo-deb@$builder_version"
        rm -rf "$target/tools/build"
    fi
}

# Puts the programs and what they print about themselves where Cargo.toml's [package.metadata.deb] looks.
stage() {
    if [ "$profile" = release ]; then
        cargo build --quiet --workspace --bins --release
    fi
    rm -rf "$stage"
    mkdir -p "$stage/man"
    local program
    for program in mcprelay fake-mcpd; do
        [ -x "$target/$profile/$program" ] || fail "there is no $target/$profile/$program: run cargo build --workspace"
        strip --strip-debug -o "$stage/$program" "$target/$profile/$program"
    done
    "$stage/mcprelay" man --dir "$stage/man"
    "$stage/mcprelay" completions bash >"$stage/mcprelay.bash"
    "$stage/mcprelay" completions zsh >"$stage/_mcprelay"
    "$stage/mcprelay" completions fish >"$stage/mcprelay.fish"
}

# What the package must bring, besides a page for every command.
files=(
    /usr/bin/mcprelay
    /usr/bin/fake-mcpd
    /usr/lib/systemd/system/mcprelay.service
    /usr/lib/systemd/system/mcprelay.socket
    /usr/lib/systemd/user/mcprelay.service
    /usr/lib/systemd/user/mcprelay.socket
    /usr/share/man/man1/mcprelay.1.gz
    /usr/share/man/man1/mcprelay-run.1.gz
    /usr/share/bash-completion/completions/mcprelay
    /usr/share/zsh/vendor-completions/_mcprelay
    /usr/share/fish/vendor_completions.d/mcprelay.fish
    /usr/share/doc/mcprelay/copyright
    /usr/share/doc/mcprelay/guides/service.md
    /etc/default/mcprelay
)

check_contents() {
    local listing file pages
    listing=$(dpkg-deb --fsys-tarfile "$deb" | tar -t)
    for file in "${files[@]}"; do
        grep -qxF ".$file" <<<"$listing" || grep -qxF "${file#/}" <<<"$listing" || fail "the package lacks $file"
    done
    pages=$(grep -c 'man1/.*\.1\.gz$' <<<"$listing")
    [ "$pages" = "$(find "$stage/man" -name '*.1' | wc -l)" ] || fail "the package has $pages manual pages, not all"
}

# Paths that the package or its use could leave behind.
traces() {
    find /etc /usr /var/lib /run \( -path /usr/src -o -path /usr/local -o -path /var/lib/dpkg \) -prune -o \
        \( -name '*mcprelay*' -o -name '*fake-mcpd*' \) -print 2>/dev/null | sort
    getent passwd mcprelay || true
    getent group mcprelay || true
}

check_use() {
    local file said home
    for file in "${files[@]}"; do
        # A container's dpkg may be told to leave documentation out.
        [ -e "$file" ] || [[ $file == /usr/share/* ]] || fail "$file was not installed"
    done
    [ "$(stat -c %a /etc/default/mcprelay)" = 600 ] || fail "/etc/default/mcprelay may hold a token and is readable by others"
    [ "$(id -un mcprelay)" = mcprelay ] || fail "there is no user mcprelay"
    said=$(/usr/bin/mcprelay --version)
    [[ $said == "mcprelay "* ]] || fail "mcprelay --version says: $said"
    home=$(mktemp -d)
    HOME=$home timeout 60 /usr/bin/mcprelay demo >"$home/said" 2>&1 || fail "mcprelay demo failed: $(cat "$home/said")"
    rm -rf "$home"
    said=$(systemd-analyze verify --man=no mcprelay.service mcprelay.socket 2>&1) || fail "the installed units: $said"
    [ -z "$said" ] || fail "the installed units: $said"
}

try_out() {
    local before
    before=$(traces)
    [ -z "$before" ] || fail "this machine has mcprelay already; try the package elsewhere: $before"
    trap 'dpkg --purge mcprelay >/dev/null 2>&1 || true' EXIT
    dpkg --install "$deb" >/dev/null
    check_use
    dpkg --remove mcprelay >/dev/null
    [ ! -e /usr/bin/mcprelay ] && [ -e /etc/default/mcprelay ] || fail "removal must take the programs and keep the settings"
    dpkg --purge mcprelay >/dev/null
    [ -z "$(traces)" ] || fail "the purge left: $(traces)"
}

get_builder
stage
# The builder's own compressor takes minutes where the builder is not optimized.
options=(--no-build --no-strip --compress-system --output "$stage/")
[ "$profile" = release ] || options+=(--fast)
cargo deb --quiet "${options[@]}" >/dev/null
deb=$(echo "$stage"/*.deb)
check_contents
echo "$deb: $(($(stat -c %s "$deb") / 1024)) KiB, $(dpkg-deb --field "$deb" Depends)"
if [ "$(id -u)" = 0 ]; then
    try_out
    echo "installed, used, removed and purged"
else
    echo "not root: built and looked into, not installed"
fi
