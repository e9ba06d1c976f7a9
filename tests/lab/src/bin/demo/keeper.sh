# Owns the operator's process and the demo's folder: both end with stdin, that is with the demo, however that ends.
# Never kills a process that it has waited for already: its id may be another's by then.
#
# Arguments: the folder, then the command. On stdout: `STATUS` when the command has ended.
folder=$1
shift

# Not even that nobody listens any more cuts the end short.
trap '' PIPE
exec 3<&0

"$@" 3<&- </dev/null >"$folder/operator.log" 2>&1 &
operator=$!

# The end of stdin asks the operator to end: it has 10 s to record what it has begun.
(
  read -r _ <&3
  kill -TERM "$operator"
  left=50
  while [ "$left" -gt 0 ] && kill -0 "$operator"; do
    sleep 0.2
    left=$((left - 1))
  done
  kill -KILL "$operator"
) >/dev/null 2>&1 &
ender=$!

wait "$operator"
echo "$?"
kill -KILL "$ender" 2>/dev/null
wait "$ender" 2>/dev/null

# The log is kept until the demo has let go of it.
read -r _ <&3
rm -rf -- "$folder"
