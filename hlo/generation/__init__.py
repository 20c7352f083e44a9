"""From a routed question to text: prompts, adapters, and the engine that runs them."""
