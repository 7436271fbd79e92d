"""What several experiments share: networks, data, figures. No family, no question."""
