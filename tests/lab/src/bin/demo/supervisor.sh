# Owns the operator's process and the demo's folder: both end when stdin closes, that is, when the demo exits for any reason.
# Never signals a process that it has already waited for: the pid may belong to another process by then.
#
# Arguments: the folder, then the command. Stdout: the exit status of the command.
folder=$1
shift

# A closed stdout must not interrupt the cleanup.
trap '' PIPE
exec 3<&0

"$@" 3<&- </dev/null >"$folder/operator.log" 2>&1 &
operator=$!

# When stdin closes, the operator gets SIGTERM and 10 s to write its records.
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
terminator=$!

wait "$operator"
echo "$?"
kill -KILL "$terminator" 2>/dev/null
wait "$terminator" 2>/dev/null

# The log is kept until the demo has closed stdin.
read -r _ <&3
rm -rf -- "$folder"
