"""Questions about recorded episodes that the simulator can answer, as samples of text, pictures and actions."""
