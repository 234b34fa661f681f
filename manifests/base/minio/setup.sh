#!/bin/sh
# Bring MinIO's bucket, users and policies to what is mounted here. It may run any number of times.
#
#   /clients/<access key>.secret-key   the secret of each federation's server and clients, with its policy beside it:
#                                      <access key>.policy.json
#   /policies/*.json                   what nobody may do
#
# Of other programs it uses mc and cat alone: the image has no grep, sed or awk.
set -eu

root=${SETUP_ROOT:-}  # for tests: where the mounts are
bucket=perfit
# Every user made here has this policy, and thereby is known again when its client is gone.
mark=perfit-no-self-service
newline='
'

# So that the root password is in no process's arguments; it must need no escape in a URL.
export MC_HOST_store="http://$MINIO_ROOT_USER:$MINIO_ROOT_PASSWORD@minio:9000"

fail() {
    echo "setup: $1" >&2
    exit 1
}

# value NAME JSON: a string member of a JSON object on one line.
value() {
    case $2 in *"\"$1\":"*) ;; *) return 0 ;; esac
    rest=${2#*"\"$1\":"}
    rest=${rest#*'"'}
    printf '%s\n' "${rest%%'"'*}"
}

# read_attached: what MinIO has before anything is changed here, as lines "USER POLICY".
read_attached() {
    attached=$newline
    users=$(mc admin user list store --json)
    while read -r line; do
        user=$(value accessKey "$line")
        [ -n "$user" ] || continue
        case $line in *'}') ;; *) fail "mc lists users in a form that is not known here" ;; esac
        policies=$(value policyName "$line")
        IFS=,
        for policy in $policies; do attached="$attached$user $policy$newline"; done
        unset IFS
    done <<USERS
$users
USERS
}

# A removed client's key must end with it. Users that somebody made by hand bear no mark and stay.
remove_others() {
    while read -r user policy; do
        [ "$policy" = "$mark" ] || continue
        [ ! -e "$root/clients/$user.secret-key" ] || continue
        mc admin user remove store "$user" </dev/null
        echo "removed user $user"
    done <<ATTACHED
$attached
ATTACHED
}

# attach USER POLICY: a call of mc for those alone that MinIO did not have.
attach() {
    case $attached in
    *"$newline$1 $2$newline"*) ;;
    *) mc admin policy attach store "$2" --user "$1" ;;
    esac
}

# ensure_user USER SECRET_FILE POLICY POLICY_FILE: a user that is there gets the secret as its new one.
ensure_user() {
    secret=$(cat "$2")
    [ -n "$secret" ] || fail "there is no secret key of $1"
    mc admin policy create store "$3" "$4"
    printf '%s\n%s\n' "$1" "$secret" | mc admin user add store
    attach "$1" "$mark"  # first, so that none has rights without it
    attach "$1" "$3"
}

# It ends when MinIO is healthy, and until then says every five seconds what is wrong: the Job's deadline bounds it.
mc ready store
read_attached
remove_others  # before all that takes long or may fail
mc mb --ignore-existing "store/$bucket"
mc admin policy create store "$mark" "$root/policies/no-self-service.json"
for file in "$root"/clients/*.secret-key; do
    [ -e "$file" ] || continue
    user=${file##*/}
    user=${user%.secret-key}
    case $user in *.*) policy=client-$user ;; *) policy=$user ;; esac  # a server's name has no dot
    ensure_user "$user" "$file" "$policy" "${file%.secret-key}.policy.json"
done
# What somebody overwrites can be found again. Clients' own files are left out: each round replaces them.
mc version enable --excluded-prefixes "federations/*/clients/" "store/$bucket"
echo "setup: done"
