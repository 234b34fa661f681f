"""The Secrets that tasks take their keys to the store from; their names are those of `ClusterSpec`."""

STORE_KEYS = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
"""What each holds, under the names of the environment variables that they become."""
