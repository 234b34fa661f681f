# Prints the users and policies of files <access key>.secret-key and <access key>.policy.json as SeaweedFS's -s3.config.
#
# known: a file with the names of users that were there, read and renewed. Who has no secret any more is named without a
# key, and thereby loses the one that SeaweedFS remembers.

function quoted(text,    parts, count, i, out) {
    gsub(/\\/, "&&", text)
    count = split(text, parts, "\"")
    out = parts[1]
    for (i = 2; i <= count; i++) out = out "\\\"" parts[i]
    return "\"" out "\""
}

function key(access, secret) {
    return ",\"credentials\":[{\"accessKey\":" quoted(access) ",\"secretKey\":" quoted(secret) "}]"
}

function stem(path, end) {
    sub(/.*\//, "", path)
    return substr(path, 1, length(path) - length(end))
}

BEGIN {
    while ((getline name < known) > 0) users[name]
    close(known)
}

FILENAME ~ /\.secret-key$/ { name = stem(FILENAME, ".secret-key"); secrets[name] = secrets[name] $0; users[name] }
FILENAME ~ /\.policy\.json$/ { name = stem(FILENAME, ".policy.json"); policies[name] = policies[name] $0 }

END {
    printf "{\"identities\":[{\"name\":\"root\",\"actions\":[\"Admin\"]"
    printf "%s}", key(ENVIRON["ROOT_ACCESS_KEY"], ENVIRON["ROOT_SECRET_KEY"])
    for (name in users) {
        print name > known
        printf ",\n{\"name\":%s", quoted(name)
        if (secrets[name] != "" && name in policies) {
            printf "%s,\"policyNames\":[%s]", key(name, secrets[name]), quoted(name)
        }
        printf "}"
    }
    printf "],\n\"policies\":["
    for (name in policies) {
        printf "%s{\"name\":%s,\"content\":%s}", between, quoted(name), quoted(policies[name])
        between = ",\n"
    }
    print "]}"
}
