"""The images that the components run in, unless a compilation names others."""

CLIENT_IMAGE = "perfit-client:0.2.0"
"""torch, transformers, peft: clients, and the founding of a federation, which reads the model's shapes."""

SERVER_IMAGE = "perfit-server:0.2.0"
"""numpy alone: planning, aggregation, reports."""
