"""The Secrets that tasks take their keys to the store from."""

SERVER_SECRET = "perfit-server"
"""Secret of the tasks that read and write the whole federation; a client's is `ClusterSpec.secret_of`."""

STORE_KEYS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
"""What each of these Secrets holds, under the names of the environment variables that they become."""
