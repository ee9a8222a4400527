"""Actions as tokens: the one owner of special-token strings and ids."""
