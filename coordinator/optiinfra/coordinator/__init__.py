"""Who decides: collects votes, asks for approval, carries changes out stage by stage."""
