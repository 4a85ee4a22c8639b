package ocitest

import (
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// OddImage is an image with something unusual in it, and a way to tell from
// inside whether it survived.
type OddImage struct {
	Name  string
	Image *Image
	// Check is a script for a POSIX shell with busybox's tools that succeeds only
	// if all is as it should be. It runs as the image's user.
	Check string
}

// Odd returns odd images on top of the base layers, which bring a shell at
// /bin/sh and the usual tools. One of them has 100,000 files.
func Odd(base ...Layer) []OddImage {
	on := func(config v1.Config, layers ...Layer) *Image {
		return NewImage(config, append(append([]Layer{}, base...), layers...)...)
	}
	many := make([]Entry, 100_000)
	for i := range many {
		many[i] = File(fmt.Sprintf("many/%d/%d", i%100, i), fmt.Sprint(i))
	}
	return []OddImage{
		{
			Name: "whiteouts",
			Image: on(v1.Config{},
				Gzip(File("gone", ""), File("kept", ""), File("dir/gone", ""), File("opaque/old", ""), File("was-dir/x", ""), File("was-file", "")),
				Gzip(Whiteout("gone"), Whiteout("dir"), Opaque("opaque"), File("opaque/new", ""), File("was-dir", "now a file"), Dir("was-file"))),
			Check: `test ! -e /gone && test -e /kept && test ! -e /dir && test "$(ls -A /opaque)" = new &&
				test "$(cat /was-dir)" = "now a file" && test -d /was-file`,
		},
		{
			Name:  "sparse",
			Image: on(v1.Config{}, Gzip(Sparse("sparse", 1<<30, Piece{Offset: 0, Data: "start"}, Piece{Offset: 512 << 20, Data: "middle"}))),
			Check: `test "$(stat -c %s /sparse)" = 1073741824 && test "$(head -c 5 /sparse)" = start &&
				test "$(dd if=/sparse bs=1048576 skip=512 count=1 2>/dev/null | head -c 6)" = middle`,
		},
		{
			Name:  "many",
			Image: on(v1.Config{}, Gzip(many...)),
			Check: `test "$(find /many -type f | wc -l)" -eq 100000 && test "$(cat /many/42/99942)" = 99942`,
		},
		{
			Name: "user",
			Image: on(v1.Config{User: "app", WorkingDir: "/home/app", Env: []string{"PATH=/bin:/usr/bin", "WHO=app"}}, Gzip(
				File("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1234:5678::/home/app:/bin/sh\n"),
				File("etc/group", "root:x:0:\napp:x:5678:\nextra:x:9999:app\n"),
				Dir("home/app").Owner(1234, 5678).Mode(0o700),
				File("home/app/own", "mine").Owner(1234, 5678).Mode(0o600),
				File("secret", "root's").Mode(0o600))),
			Check: `test "$(id -u):$(id -g)" = 1234:5678 && test "$(cat /home/app/own)" = mine && ! cat /secret 2>/dev/null`,
		},
		{
			Name:  "utf8",
			Image: on(v1.Config{}, Gzip(File("grüße/日本語 ☃", "schön"), Symlink("ссылка", "grüße/日本語 ☃"))),
			Check: `test "$(cat '/grüße/日本語 ☃')" = schön && test "$(cat /ссылка)" = schön`,
		},
		{
			Name: "hardlinks",
			Image: on(v1.Config{},
				Gzip(File("a", "shared"), Link("b", "a"), File("gone", "x"), Link("left", "gone")),
				Gzip(Link("dir/c", "b"), Whiteout("gone"))),
			Check: `test "$(stat -c %i /a)" = "$(stat -c %i /b)" && test "$(stat -c %i /a)" = "$(stat -c %i /dir/c)" &&
				test "$(stat -c %h /a)" = 3 && test "$(stat -c %h /left)" = 1 && test "$(cat /left)" = x`,
		},
		{
			Name: "metadata",
			Image: on(v1.Config{}, Gzip(
				File("suid", "").Mode(0o4755).Owner(1000, 70000), Dir("sticky").Mode(0o1777),
				Char("null", 1, 3), FIFO("pipe"), File("time", ""))),
			Check: `test "$(stat -c %a:%u:%g /suid)" = 4755:1000:70000 && test "$(stat -c %a /sticky)" = 1777 &&
				test -c /null && test "$(stat -c %t:%T /null)" = 1:3 && test -p /pipe && test "$(stat -c %Y /time)" = 1700000000`,
		},
	}
}
