package wire

// Files is a request about files but for reading and writing whole ones: exactly one of its fields is set. Paths are absolute and of the workload's root;
// they, and all names, are bytes and need not be UTF-8.
type Files struct {
	// Read and Write are Request's with what agents of old do not know and would ignore there: a range, or where to write.
	Read  *ReadFile  `msgpack:"read,omitempty"`
	Write *WriteFile `msgpack:"write,omitempty"`

	Stat    *Stat    `msgpack:"stat,omitempty"`    // answered by Reply.File
	Walk    *Walk    `msgpack:"walk,omitempty"`    // records of FileInfo on ChannelOut
	Mkdir   *Mkdir   `msgpack:"mkdir,omitempty"`   //
	Remove  *Remove  `msgpack:"remove,omitempty"`  //
	Rename  *Rename  `msgpack:"rename,omitempty"`  //
	Chmod   *Chmod   `msgpack:"chmod,omitempty"`   //
	Chown   *Chown   `msgpack:"chown,omitempty"`   //
	Symlink *Symlink `msgpack:"symlink,omitempty"` //
	Watch   *Watch   `msgpack:"watch,omitempty"`   // a reply once it watches, then records of Event on ChannelOut
	Pack    *Pack    `msgpack:"pack,omitempty"`    // an archive on ChannelOut
	Unpack  *Unpack  `msgpack:"unpack,omitempty"`  // an archive on ChannelIn
}

// Stat asks for a file's attributes.
type Stat struct {
	Path   string `msgpack:"path"`
	Follow bool   `msgpack:"follow,omitempty"` // those of what a symbolic link points to
}

// Walk asks for what is below a directory. Symbolic links below it are not followed.
type Walk struct {
	Path  string `msgpack:"path"`
	Depth int    `msgpack:"depth,omitempty"`  // 1: the directory's own entries; 0: everything
	OneFS bool   `msgpack:"one_fs,omitempty"` // what is mounted below is not entered
}

// FileInfo is a file's attributes.
type FileInfo struct {
	Path    string `msgpack:"path"` // below the directory of a Walk; of a Stat the last name
	Size    int64  `msgpack:"size"`
	Mode    uint32 `msgpack:"mode"` // Linux's st_mode: type and permission bits
	UID     uint32 `msgpack:"uid"`
	GID     uint32 `msgpack:"gid"`
	ModTime int64  `msgpack:"mtime"`            // Unix time in nanoseconds
	Target  string `msgpack:"target,omitempty"` // of a symbolic link
	Dev     uint64 `msgpack:"dev"`              // with Ino, the file's identity in the guest
	Ino     uint64 `msgpack:"ino"`
	Links   uint64 `msgpack:"links"`           // how many names it has
	Error   *Error `msgpack:"error,omitempty"` // it cannot be examined; or a directory that was told already cannot be read to its end
}

// Mkdir makes a directory.
type Mkdir struct {
	Path    string `msgpack:"path"`
	Mode    uint32 `msgpack:"mode"`              // 07777
	Parents bool   `msgpack:"parents,omitempty"` // and those that it is in, with mode 0755; one that exists is no error
	Owner   string `msgpack:"owner,omitempty"`   // of all that are made, as WriteFile.Owner
}

// Remove removes a file, a link or a directory.
type Remove struct {
	Path      string `msgpack:"path"`
	Recursive bool   `msgpack:"recursive,omitempty"` // and what is in the directory; links are not followed
}

// Rename gives a file another name, which it replaces as rename(2) does.
type Rename struct {
	From      string `msgpack:"from"`
	To        string `msgpack:"to"`
	NoReplace bool   `msgpack:"no_replace,omitempty"` // an existing To is KindExists
}

// Chmod sets permission bits. Of a symbolic link it sets those of the target; recursively, links are left alone.
type Chmod struct {
	Path      string `msgpack:"path"`
	Mode      uint32 `msgpack:"mode"` // 07777
	Recursive bool   `msgpack:"recursive,omitempty"`
}

// Chown sets the owner. Recursively, and with NoFollow, symbolic links themselves get it.
type Chown struct {
	Path      string `msgpack:"path"`
	Owner     string `msgpack:"owner"` // NAME|UID[:GROUP|GID]; what is not given, user or group, stays as it is
	Recursive bool   `msgpack:"recursive,omitempty"`
	NoFollow  bool   `msgpack:"no_follow,omitempty"`
}

// Symlink makes a symbolic link.
type Symlink struct {
	Target string `msgpack:"target"` // not checked
	Path   string `msgpack:"path"`
}

// Watch reports changes of a file, or of what is in a directory, until the stream is abandoned or the file or directory itself is removed or moved.
type Watch struct {
	Path      string `msgpack:"path"` // followed if it is a link
	Recursive bool   `msgpack:"recursive,omitempty"`
}

// Event is a change.
type Event struct {
	Op   string `msgpack:"op"`             // one of the constants below
	Path string `msgpack:"path"`           // below the watched directory; "." is the watched file or directory itself
	From string `msgpack:"from,omitempty"` // of EventRenamed: the old path
	Dir  bool   `msgpack:"dir,omitempty"`  // a directory's
}

// What an Event tells.
const (
	EventCreated    = "created"    // made, or moved here from elsewhere
	EventModified   = "modified"   // contents
	EventRemoved    = "removed"    // or moved elsewhere
	EventRenamed    = "renamed"    // within what is watched; it replaced what had the name
	EventAttributes = "attributes" // mode, owner, times or number of names
	EventOverflow   = "overflow"   // events were lost, or a new directory could not be watched
)

// Pack asks for a tree or a file as a PAX archive, as package tree makes them.
type Pack struct {
	Path     string `msgpack:"path"`               // not followed if it is a link
	Contents bool   `msgpack:"contents,omitempty"` // Path is followed, and has to be a directory
	OneFS    bool   `msgpack:"one_fs,omitempty"`
}

// Unpack unpacks an archive, never outside of its place.
type Unpack struct {
	Path   string `msgpack:"path"`             // an existing directory, or, with Copy, where the copy goes
	Copy   bool   `msgpack:"copy,omitempty"`   // the rule of cp -a decides about the place, by the next two
	Base   string `msgpack:"base,omitempty"`   // the source's name
	Whole  bool   `msgpack:"whole,omitempty"`  // the source is a directory's contents
	Owners bool   `msgpack:"owners,omitempty"` // keep them, by number
	Owner  string `msgpack:"owner,omitempty"`  // else: as WriteFile.Owner
	Setuid bool   `msgpack:"setuid,omitempty"` // keep set-user-ID and set-group-ID bits

	Special bool `msgpack:"special,omitempty"` // make devices and FIFOs; else they are an error
	Skip    bool `msgpack:"skip,omitempty"`    // leave devices and FIFOs out
}
