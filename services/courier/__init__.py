"""Letters: verified, ordered into IN and receipted on the way up; kept in mailboxes until `got` on the way down."""
