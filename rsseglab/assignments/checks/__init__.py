"""What each assignment is held against: the library's component, the checks, and the mistakes that many make."""
