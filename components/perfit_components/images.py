"""The images that the components run in, unless a compilation names others."""

CLIENT_IMAGE = "perfit-client:0.2.0"
"""With torch, transformers and peft: for clients, and for prepare, which reads the model's shapes."""

SERVER_IMAGE = "perfit-server:0.2.0"
"""Without torch: for planning, aggregation and reports."""
