#!/bin/sh
# Counts the instructions of the agent's hot paths under callgrind and compares them with benches/instructions.txt.
# usage: benches/instructions.sh [--write]
# Instruction counts do not depend on what else the machine does, so a difference is the code's (or the compiler's).
set -eu
cd "$(dirname "$0")/.."

# More than this many percent above the baseline is a failure; below it, a wish for a new baseline.
TOLERANCE=5
# The difference between two numbers of rounds leaves out everything that happens once.
FEW=1000
MANY=3000
BASELINE=benches/instructions.txt

cargo build --release --quiet -p mcprelay-bench
count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null target/release/mcprelay-bench hot "$1" "$2" 2>&1 |
        awk '/Collected/ { print $4 }'
}

results=$(
    for path in task offer chunk merge untraced; do
        few=$(count "$path" "$FEW")
        many=$(count "$path" "$MANY")
        echo "$path $(((many - few) / (MANY - FEW)))"
    done
)

if [ "${1:-}" = --write ]; then
    echo "$results" | tee "$BASELINE"
    exit
fi

echo "$results" | awk -v tolerance="$TOLERANCE" '
    NR == FNR { baseline[$1] = $2; next }
    {
        change = 100 * ($2 / baseline[$1] - 1)
        word = change > tolerance ? "MORE" : change < -tolerance ? "less; write a new baseline" : "ok"
        printf "%-6s %7d instructions, baseline %7d, %+.1f %% %s\n", $1, $2, baseline[$1], change, word
        failed = failed || change > tolerance
    }
    END { exit failed }
' "$BASELINE" -
