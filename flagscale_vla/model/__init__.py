"""The network: vision tower, language model, flow head."""
