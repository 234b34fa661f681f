#!/bin/sh
# SeaweedFS with the users and policies that are mounted here, also when they change.
#
#   /clients/<access key>.secret-key   the secret of each federation's server and clients, with its policy beside it:
#                                      <access key>.policy.json
#
# Its IAM API is off: with it every user may make itself keys that outlive a rotation, whatever its policy says, and each
# call reads and writes all users again (4.48: 3 s a call with 42 users). This file takes 1,000 of them at once.
set -eu

root=${START_ROOT:-}  # for tests: where the mounts are
offset=${START_PORT_OFFSET:-0}  # for tests
here=$(dirname "$0")
users=$root/tmp/users.json
known=$root/tmp/known-users
socket=$root/tmp/s3.sock
master=127.0.0.1:$((9333 + offset))

# Also names users that were there since the start: SeaweedFS keeps whom its file no longer names.
write_users() {
    set -- "$root"/clients/*
    [ -e "$1" ] || set --
    awk -v known="$known" -f "$here/users.awk" /dev/null "$@" >"$users.new"
    mv "$users.new" "$users"
}

# A kubelet changes all files of a mount at once, by this link.
version() {
    readlink "$root/clients/..data" || true
}

make_bucket() {
    made=$(echo "s3.bucket.create -name perfit" | timeout 20 weed shell -master="$master" 2>&1)
    case $made in *"created bucket"* | *"already exists"*) ;; *) return 1 ;; esac
}

# follow PID SEEN: make the bucket, then bring each change to the server.
follow() {
    seen=$2
    # A signal before the S3 server is there would do nothing.
    until [ -S "$socket" ] && make_bucket; do sleep 1; done
    : >"$root/tmp/ready"
    echo "start: ready"
    while sleep 5; do
        now=$(version)
        [ "$now" != "$seen" ] || continue
        write_users
        kill -HUP "$1"
        seen=$now
        echo "start: users changed"
    done
}

rm -f "$root/tmp/ready" "$known" "$socket"
seen=$(version)  # before the files are read: a change meanwhile is brought later
umask 077
write_users
# Whoever reaches the S3 server's gRPC port may add users unless there is a key, and NetworkPolicies may have no effect.
WEED_JWT_FILER_SIGNING_KEY=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
export WEED_JWT_FILER_SIGNING_KEY
follow "$$" "$seen" &
unset ROOT_ACCESS_KEY ROOT_SECRET_KEY
cd "$root/data"
# Only the S3 server listens beyond this pod.
exec weed server -dir="$root/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
    -master.port=$((9333 + offset)) -master.volumeSizeLimitMB=1024 -master.telemetry=false \
    -volume.port=$((8080 + offset)) -volume.max=0 -volume.preStopSeconds=1 -filer -filer.port=$((8888 + offset)) \
    -s3 -s3.ip.bind=0.0.0.0 -s3.port=$((8333 + offset)) -s3.port.iceberg=0 -s3.port.lance=0 \
    -s3.localSocket="$socket" -s3.iam=false -s3.config="$users" \
    -s3.autoCreateBucket=false -s3.allowDeleteBucketNotEmpty=false
