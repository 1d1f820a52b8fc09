"""What a hospital agreed to: agreement, policy, forecast, what approving shows, and withdrawal."""
