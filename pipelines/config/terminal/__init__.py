"""What a person types and reads: options from dataclasses (`cli`), their help (`help`), the main of a command (`command`)."""
