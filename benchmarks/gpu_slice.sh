#!/usr/bin/env bash
# The paper preset on a GPU that is lent for minutes: data taken along in parts, work done in slices that go on.
#
#   benchmarks/gpu_slice.sh pack cifar10 parts        here: parts/cifar10.part-* of at most 60 MB, with checksums
#   benchmarks/gpu_slice.sh join parts data           there, as often as parts arrive: unpacked once all of a set are in
#   benchmarks/gpu_slice.sh run data 03 05 06         there: 540 seconds of work; exit code 75 while there is more to do
#   benchmarks/gpu_slice.sh results results.tar       there: tables, metrics, provenance and figures in one small archive
#
# LEAKLEARN_DATA names the folder that `pack` reads; SECONDS_EACH another length of slice, SET="name=value ..." other
# parameters, PYTHON the interpreter. Slices of one machine go on by themselves; to go on on another one, take
# outputs/.cache along.
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-$root/.venv/bin/python}"
declare -A folders=([cifar10]=cifar-10-batches-py [mnist]=MNIST [fashion_mnist]=FashionMNIST [tinyimagenet]=tiny-imagenet-200)

fail() { echo "gpu_slice: $1" >&2; exit 2; }

pack() {
  local folder="${folders[$1]:-}"
  [ -n "$folder" ] || fail "there is no data set '$1': ${!folders[*]}"
  [ -d "${LEAKLEARN_DATA:-}/$folder" ] || fail "there is no $folder in LEAKLEARN_DATA ('${LEAKLEARN_DATA:-}')"
  mkdir -p "$2"
  rm -f "$2/$1".part-* "$2/$1.sha256"
  # --mtime and --sort: the same data give the same parts.
  tar -C "$LEAKLEARN_DATA" --sort=name --mtime=@0 -c "$folder" | gzip -n1 | split -b 60000000 -d -a 3 - "$2/$1.part-"
  (cd "$2" && sha256sum "$1".part-* >"$1.sha256")
  wc -c "$2/$1".part-*
}

join() {
  mkdir -p "$2"
  for list in "$1"/*.sha256; do
    [ -e "$list" ] || fail "there are no parts in $1"
    local name; name="$(basename "$list" .sha256)"
    local folder="${folders[$name]:-}"
    [ -n "$folder" ] || fail "$list belongs to no data set: ${!folders[*]}"
    [ ! -d "$2/$folder" ] || { echo "$name: here already"; continue; }
    local missing=0
    for part in $(awk '{print $2}' "$list"); do [ -e "$1/$part" ] || { echo "$name: $part is still to come"; missing=1; }; done
    [ $missing = 0 ] || continue
    (cd "$1" && sha256sum --quiet -c "$name.sha256") || fail "a part of $name is damaged: bring it again"
    rm -rf "$2/.joining"
    mkdir "$2/.joining"
    (cd "$1" && awk '{print $2}' "$name.sha256" | xargs cat) | tar -C "$2/.joining" -xz
    mv "$2/.joining/$folder" "$2/$folder"
    rmdir "$2/.joining"
    echo "$name: unpacked"
  done
}

run() {
  export LEAKLEARN_DATA="$1"
  shift
  # shellcheck disable=SC2086
  exec "$python" -m leaklearn reproduce --preset paper --slice "${SECONDS_EACH:-540}" ${1:+--only "$@"} ${SET:+--set $SET}
}

results() {
  cd "$root/outputs/paper"
  find . -type f \( -name '*.csv' -o -name '*.json' -o -name '*.png' \) -not -path './.*/*' -print0 |
    tar --null -T - --sort=name -czf "$1"
  wc -c "$1"
}

case "${1:-}" in
  pack | join) [ $# = 3 ] || fail "$1 takes two arguments: see the head of this file"; "$@" ;;
  run) [ $# -ge 2 ] || fail "run takes the data's folder: see the head of this file"; "$@" ;;
  results) [ $# = 2 ] || fail "results takes the archive's name"; results "$(realpath -m "$2")" ;;
  *) fail "say pack, join, run or results: see the head of this file" ;;
esac
