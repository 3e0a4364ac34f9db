#!/usr/bin/env bash
# Build the documentation as a site that works from a file. See --help.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
output=''
force=no

usage() {
    cat <<'TEXT'
usage: launch/docs.sh [options] [FOLDER]

  --force  build even if nothing has changed since the last time
  --help   this text

Builds README.md, docs/*.md, a reference of the Python interface from its docstrings, and one of the command line, into FOLDER
(default: build/docs in the checkout). Open index.html there in a browser; no server and no network are needed. A broken link or
anchor, a missing docstring, or any warning is an error that names the place; then the previous site stays as it was.

Uses the python on PATH if it has the packages, as in an activated environment; otherwise launch/setup.sh installs them.
TEXT
}

# fail STATUS LINE...: print the lines and exit. Statuses are those of hvd-async: 2 for arguments, 3 for output and pages.
fail() {
    local status=$1
    shift
    printf 'docs: %s\n' "$@" >&2
    exit "$status"
}

while (($#)); do
    case $1 in
        --force) force=yes ;;
        --help) usage && exit 0 ;;
        -*) fail 2 "$1: unknown option; see --help" ;;
        '') fail 2 'FOLDER: got an empty name, expected a folder; see --help' ;;
        *)
            [[ -z $output ]] || fail 2 "$1: got a second FOLDER, expected at most one; see --help"
            output=$(realpath -m -- "$1")
            ;;
    esac
    shift
done
: "${output:=$root/build/docs}"
readonly stamp=$output/.docs-stamp

has_packages() {
    python -c 'import material, mkdocs, mkdocstrings_handlers.python, pydantic, yaml' 2>/dev/null
}

# Print what identifies the site: everything that it is made of, and the versions of what makes it.
digest() {
    {
        python -c 'import importlib.metadata as m; print(sorted((d.name, d.version) for d in m.distributions()))'
        find ./*.md ./*.toml docs hvd_async launch configs examples slurm tests -type f -not -path '*/__pycache__/*' -print0 |
            sort -z | xargs -0 sha256sum
    } | sha256sum | cut -d ' ' -f 1
}

# faults LOG: print the warnings and errors in the log; of a traceback, the last place and the error.
faults() {
    awk '/^(INFO|During handling |The above exception )/ || !NF { next }
        /^Traceback / { stack = 1; next }
        stack && /^ / { if (/^  File/) place = $0; next }
        stack { print "docs:" place; stack = 0 }
        { print "docs: " $0 }' "$1"
}

cd "$root"
if [[ -e $output && ! -f $stamp && -n $(ls -A "$output" 2>&1) ]]; then
    fail 3 "$output: got files that are no site of this script, expected an empty folder or none; name another one"
fi
if ! has_packages; then
    "$root/launch/setup.sh"
    export PATH="$root/.venv/bin:$PATH"
fi
now=$(digest)
if [[ $force == no && -f $stamp && $(cat "$stamp") == "$now" ]]; then
    echo "docs: $output/index.html is up to date"
    exit 0
fi
mkdir -p "$(dirname "$output")" 2>/dev/null || fail 3 "$output: cannot be made; name another folder"
partial=$(mktemp -d "$output.XXXXXX")
trap 'rm -rf "$partial"' EXIT
# The width of the texts of --help; the theme's announcement is not for readers of this output.
if ! COLUMNS=98 NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --config-file launch/site/mkdocs.yml \
    --site-dir "$partial/site" >"$partial/log" 2>&1; then
    faults "$partial/log" >&2
    exit 3
fi
echo "$now" >"$partial/site/.docs-stamp"
rm -rf "$output"
mv "$partial/site" "$output"
echo "docs: open $output/index.html"
