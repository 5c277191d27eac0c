"""SmolMoE: SmolLM2-135M-Instruct with its feed-forward layers split into one shared and 16 routed experts."""
