"""What every job leaves for its reader: settings, figures, one page with pictures."""
